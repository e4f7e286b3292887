// Attention of one new token of each sequence over pages of keys and values.
//
// A sequence sees the pages of its prompt, which it may share with others, and then its own. The keys of each are cut into spans
// of a fixed number of tokens; one warp attends to one span for one key head and for up to 16 query rows: the query heads
// that share the key head, of as many sequences that share the span as fit. Each span gives a partial result, and `join_spans` adds
// them up. What is computed for a sequence therefore depends on its own length alone, whatever else is in the batch.
//
// The products are `mma.m16n8k16`. The order of the contracted axis does not matter there as long as both sides have the same, so
// dims and keys are taken in an order in which each thread's operands lie side by side: thread t of a quad takes 8 dims (or
// keys) 8t..8t+7 of 32 with one load of 16 bytes. Values lie dim by dim in a page for the same reason.
//
// The warp of a sequence's last span puts the new token's key and value into their page before it reads it.
//
// Shapes: qkv [rows, QKV_HEADS, HEAD_DIM] bf16; keys [pages, KEY_HEADS, PAGE, HEAD_DIM];
// values [pages, KEY_HEADS, HEAD_DIM, PAGE]; sums [rows, spans, HEADS, HEAD_DIM] f32; maxima [rows, spans, HEADS] (maximum in base 2, sum).

#define TILE_ROWS 16
#define TILE_SEQUENCES (TILE_ROWS / GROUP)
#define ATTENTION_WARPS 4
#define DIM_BLOCKS (HEAD_DIM / 32)
#define DIM_TILES (HEAD_DIM / 8)

__device__ __forceinline__ void multiply(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// What all warps of a step share; shapes as above and at `attend`.
struct Step {
    const u16* qkv;
    Rotation rotation;
    u16 *keys, *values;
    float* sums;
    float2* maxima;
    float scale;
    int spans;
    const int *lengths, *prompt_spans;
    int* arrivals;
    u16* out;
};

// Rotated query fragments of rows `quad` and `quad + 8` of a tile, in shared memory. A thread has both halves of what is rotated: its
// dims of block b and of block b + DIM_BLOCKS / 2.
__device__ __forceinline__ void load_queries(const Step& step, const int* members, int rows, int key_head, uint4 (*queries)[2][32]) {
    const int lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
    const Rotation& rotation = step.rotation;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = quad + 8 * half;
        const bool used = row < rows;
        const u64 sequence = used ? members[row / GROUP] : 0;
        const int head = key_head * GROUP + (used ? row % GROUP : 0);
        const uint4* source = reinterpret_cast<const uint4*>(step.qkv + (sequence * QKV_HEADS + head) * HEAD_DIM);
        float value[DIM_BLOCKS][8];
        float squares = 0.0f;
#pragma unroll
        for (int block = 0; block < DIM_BLOCKS; block++) {
            unpack(used ? source[block * 4 + t] : make_uint4(0, 0, 0, 0), value[block]);
            if (rotation.bias != nullptr) {
                float bias[8];
                unpack(reinterpret_cast<const uint4*>(rotation.bias + head * HEAD_DIM)[block * 4 + t], bias);
#pragma unroll
                for (int index = 0; index < 8; index++) value[block][index] += bias[index];
            }
#pragma unroll
            for (int index = 0; index < 8; index++) squares += value[block][index] * value[block][index];
        }
        if (rotation.query_norm != nullptr) {
            squares += __shfl_xor_sync(FULL_WARP, squares, 1);
            squares += __shfl_xor_sync(FULL_WARP, squares, 2);
            const float scale = rsqrtf(squares / HEAD_DIM + rotation.epsilon);
#pragma unroll
            for (int block = 0; block < DIM_BLOCKS; block++) {
                float norm[8];
                unpack(reinterpret_cast<const uint4*>(rotation.query_norm)[block * 4 + t], norm);
#pragma unroll
                for (int index = 0; index < 8; index++) value[block][index] *= scale * norm[index];
            }
        }
#pragma unroll
        for (int block = 0; block < DIM_BLOCKS / 2; block++) {
            const float4* turns =
                reinterpret_cast<const float4*>(rotation.table + sequence * (HEAD_DIM / 2) + block * 32 + 8 * t);
            float *low = value[block], *high = value[block + DIM_BLOCKS / 2];
#pragma unroll
            for (int index = 0; index < 8; index += 2) {
                const float4 turn = turns[index / 2];
                const float a = low[index] * turn.x - high[index] * turn.y;
                const float b = low[index + 1] * turn.z - high[index + 1] * turn.w;
                high[index] = high[index] * turn.x + low[index] * turn.y;
                high[index + 1] = high[index + 1] * turn.z + low[index + 1] * turn.w;
                low[index] = a, low[index + 1] = b;
            }
        }
#pragma unroll
        for (int block = 0; block < DIM_BLOCKS; block++) {
            const float* v = value[block];
            const uint4 packed = make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
            queries[block][half][lane] = used ? packed : make_uint4(0, 0, 0, 0);
        }
    }
}

// One warp: adds up the spans of a sequence for the query heads of one key head. Others wrote them: they are read past the first cache.
__device__ __forceinline__ void join(const Step& step, u64 sequence, int key_head, int count) {
    const int each = HEAD_DIM / 32, lane = threadIdx.x % 32;
    for (int head = key_head * GROUP; head < (key_head + 1) * GROUP; head++) {
        float maximum = -INFINITY, total = 0.0f, joined[each];
#pragma unroll
        for (int index = 0; index < each; index++) joined[index] = 0.0f;
#pragma unroll 2
        for (int span = 0; span < count; span++) {
            const u64 place = (sequence * step.spans + span) * HEADS + head;
            const float2 part = __ldcg(step.maxima + place);
            float values[each];
#pragma unroll
            for (int index = 0; index < each; index++) values[index] = __ldcg(step.sums + place * HEAD_DIM + lane * each + index);
            const float highest = fmaxf(maximum, part.x);
            const float shrink = exp2f(maximum - highest), weight = exp2f(part.x - highest);
            maximum = highest;
            total = total * shrink + part.y * weight;
#pragma unroll
            for (int index = 0; index < each; index++) joined[index] = joined[index] * shrink + values[index] * weight;
        }
        const float inverse = 1.0f / total;
        u32* target = reinterpret_cast<u32*>(step.out + (sequence * HEADS + head) * HEAD_DIM + lane * each);
#pragma unroll
        for (int index = 0; index < each / 2; index++)
            target[index] = pack(joined[2 * index] * inverse, joined[2 * index + 1] * inverse);
    }
}

// One warp: says that a span of some sequences is done, and adds up those of which it was the last.
__device__ __forceinline__ void arrive(const Step& step, const int* members, int sequences, int head) {
    const int lane = threadIdx.x % 32;
    __threadfence();
    __syncwarp();
    int count = 0;
    bool is_last = false;
    if (lane < sequences) {
        const int sequence = members[lane];
        count = step.prompt_spans[sequence] + (step.lengths[sequence] + OWN_SPAN - 1) / OWN_SPAN;
        int* arrivals = step.arrivals + sequence * KEY_HEADS + head;
        is_last = atomicAdd(arrivals, 1) == count - 1;
        // The next layer counts from zero again.
        if (is_last) *arrivals = 0;
    }
    u32 last = __ballot_sync(FULL_WARP, is_last);
    if (last == 0) return;
    __threadfence();
    for (; last != 0; last &= last - 1) {
        const int index = __ffs(last) - 1;
        join(step, members[index], head, __shfl_sync(FULL_WARP, count, index));
    }
}

// One warp: `count` tokens (1 or more) of the pages that start at `pages`, for the sequences `members` (`sequences` of them).
__device__ __forceinline__ void attend_span(const Step& step, const int* members, int sequences, const int* pages, int count, int head,
                                            int span, uint4 (*queries)[2][32]) {
    const u16 *keys = step.keys, *values = step.values;
    const int spans = step.spans;
    const float scale = step.scale;
    const int lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
    const int rows = sequences * GROUP;
    // The first keys and values are under way while the queries are made ready, and later ones while those before are used.
    const int page_of_lane = lane * PAGE < count ? pages[lane] : 0;
    uint4 key[4][DIM_BLOCKS], value[DIM_TILES];
    const auto base_of = [&](int start) {
        const u64 page = __shfl_sync(FULL_WARP, page_of_lane, start / PAGE);
        return (page * KEY_HEADS + head) * PAGE * HEAD_DIM;
    };
    const auto load_keys = [&](u64 base, int within) {
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            const int token = within + 8 * (quad / 2) + 2 * tile + quad % 2;
            const uint4* source = reinterpret_cast<const uint4*>(keys + base + token * HEAD_DIM);
#pragma unroll
            for (int block = 0; block < DIM_BLOCKS; block++) key[tile][block] = source[block * 4 + t];
        }
    };
    const auto load_values = [&](u64 base, int within) {
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++)
            value[tile] = *reinterpret_cast<const uint4*>(values + base + (tile * 8 + quad) * PAGE + within + 8 * t);
    };
    u64 base = base_of(0);
    load_keys(base, 0);
    load_values(base, 0);
    load_queries(step, members, rows, head, queries);
    __syncwarp();
    float out[DIM_TILES][4];
#pragma unroll
    for (int tile = 0; tile < DIM_TILES; tile++) out[tile][0] = out[tile][1] = out[tile][2] = out[tile][3] = 0.0f;
    float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    for (int start = 0; start < count; start += 32) {
        const int next = start + 32;
        float score[4][4];
#pragma unroll
        for (int tile = 0; tile < 4; tile++) score[tile][0] = score[tile][1] = score[tile][2] = score[tile][3] = 0.0f;
#pragma unroll
        for (int block = 0; block < DIM_BLOCKS; block++) {
            const uint4 upper = queries[block][0][lane], lower = queries[block][1][lane];
#pragma unroll
            for (int tile = 0; tile < 4; tile++) {
                const uint4 k = key[tile][block];
                multiply(score[tile], upper.x, lower.x, upper.y, lower.y, k.x, k.y);
                multiply(score[tile], upper.z, lower.z, upper.w, lower.w, k.z, k.w);
            }
        }
        if (next < count) {
            base = base_of(next);
            load_keys(base, next % PAGE);
        }
        // Softmax over the 32 keys; this thread has keys 8t + 2 tile and the next.
        float highest[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int index = 0; index < 4; index++) {
                const bool seen = start + 8 * t + 2 * tile + index % 2 < count;
                score[tile][index] = seen ? score[tile][index] * scale : -INFINITY;
                highest[index / 2] = fmaxf(highest[index / 2], score[tile][index]);
            }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            highest[half] = fmaxf(highest[half], __shfl_xor_sync(FULL_WARP, highest[half], 1));
            highest[half] = fmaxf(highest[half], __shfl_xor_sync(FULL_WARP, highest[half], 2));
            shrink[half] = exp2f(maximum[half] - highest[half]);
            maximum[half] = highest[half];
            total[half] *= shrink[half];
        }
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int index = 0; index < 4; index++) {
                score[tile][index] = exp2f(score[tile][index] - maximum[index / 2]);
                total[index / 2] += score[tile][index];
            }
        u32 weight[4][2];
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            weight[tile][0] = pack(score[tile][0], score[tile][1]);
            weight[tile][1] = pack(score[tile][2], score[tile][3]);
        }
        // A token beyond the end may hold anything, NaN included, and its weight of zero would not hide that.
        const bool whole = start + 32 <= count;
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++) {
            out[tile][0] *= shrink[0], out[tile][1] *= shrink[0], out[tile][2] *= shrink[1], out[tile][3] *= shrink[1];
            uint4 v = value[tile];
            if (!whole) {
                const int left = count - start - 8 * t;
                v.x = left >= 2 ? v.x : left == 1 ? v.x & 0xffffu : 0;
                v.y = left >= 4 ? v.y : left == 3 ? v.y & 0xffffu : 0;
                v.z = left >= 6 ? v.z : left == 5 ? v.z & 0xffffu : 0;
                v.w = left >= 8 ? v.w : left == 7 ? v.w & 0xffffu : 0;
            }
            multiply(out[tile], weight[0][0], weight[0][1], weight[1][0], weight[1][1], v.x, v.y);
            multiply(out[tile], weight[2][0], weight[2][1], weight[3][0], weight[3][1], v.z, v.w);
        }
        if (next < count) load_values(base, next % PAGE);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 1);
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 2);
        const int row = quad + 8 * half;
        if (row >= rows) continue;
        const u64 place = (u64(members[row / GROUP]) * spans + span) * HEADS + head * GROUP + row % GROUP;
        if (t == 0) step.maxima[place] = make_float2(maximum[half], total[half]);
        float2* target = reinterpret_cast<float2*>(step.sums + place * HEAD_DIM);
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++)
            target[tile * 4 + t] = make_float2(out[tile][2 * half], out[tile][2 * half + 1]);
    }
    arrive(step, members, sequences, head);
}

// All spans of a step: first those of prompts, from a list that the host makes, then those of the sequences' own tokens.
//
// An item is (members at, sequences, pages at, tokens | span << 16); its key head varies before its prompt does, so that the warps
// of a block read the same keys. Shapes: lengths [rows] of own tokens, the new one included (0: not in use); prompt_spans [rows];
// own [rows, own_pages]; counts: (items, spans of the longest sequence's own tokens); arrivals [rows, KEY_HEADS], all zero;
// out [rows, HEADS, HEAD_DIM] bf16.
extern "C" __global__ void __launch_bounds__(32 * ATTENTION_WARPS, 2)
    attend(const u16* qkv, const u16* bias, const u16* query_norm, const u16* key_norm, float epsilon, const float2* table, u16* keys,
           u16* values, float* sums, float2* maxima, int* arrivals, u16* out, float scale, int spans, const int4* items,
           const int* item_heads, const int* members, const int* pages, const int* lengths, const int* prompt_spans, const int* own,
           int own_pages, int rows, const int* counts) {
    __shared__ uint4 queries[ATTENTION_WARPS][DIM_BLOCKS][2][32];
    const Step step = {qkv,   Rotation{bias, query_norm, key_norm, epsilon, table}, keys, values, sums, maxima, scale, spans, lengths,
                       prompt_spans, arrivals, out};
    const int warp = threadIdx.x / 32, item_count = counts[0];
    const int total = item_count + rows * KEY_HEADS * counts[1];
    for (int index = blockIdx.x * ATTENTION_WARPS + warp; index < total; index += gridDim.x * ATTENTION_WARPS) {
        int single;
        const int *sequences = &single, *at;
        int sequence_count = 1, tokens, head, span;
        if (index < item_count) {
            const int4 item = items[index];
            sequences = members + item.x;
            sequence_count = item.y;
            at = pages + item.z;
            tokens = item.w & 0xffff;
            span = item.w >> 16;
            head = item_heads[index];
        } else {
            const int place = index - item_count;
            head = place % KEY_HEADS;
            single = place / KEY_HEADS % rows;
            const int own_span = place / KEY_HEADS / rows;
            const int left = lengths[single] - own_span * OWN_SPAN;
            if (left <= 0) continue;
            tokens = min(left, OWN_SPAN);
            at = own + single * own_pages + own_span * (OWN_SPAN / PAGE);
            span = prompt_spans[single] + own_span;
            if (left <= OWN_SPAN) {
                // The new token is in this span.
                const int place_of_new = at[(tokens - 1) / PAGE] * PAGE + (tokens - 1) % PAGE;
                float low[HALF_EACH], high[HALF_EACH];
                rotated(qkv, step.rotation, single, HEADS + head, low, high);
                keep(keys, values, place_of_new, HEADS + head, low, high);
                rotated(qkv, step.rotation, single, HEADS + KEY_HEADS + head, low, high);
                keep(keys, values, place_of_new, HEADS + KEY_HEADS + head, low, high);
                __syncwarp();
            }
        }
        attend_span(step, sequences, sequence_count, at, tokens, head, span, queries[warp]);
    }
}
