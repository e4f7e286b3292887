// Attention of one new token of each sequence over pages of keys and values.
//
// A sequence sees the pages of its prompt, which it may share with others, and then its own. The keys of each are cut into spans of a
// fixed number of tokens. A warp attends to one span for one key head and for a tile of up to 16 query rows: the query heads that share
// the key head, of as many sequences that share the span as fit. Each span gives a partial result, and the warp that ends the last span of
// a sequence adds them up. What is computed for a sequence depends on its own length alone, whatever else is in the batch.
//
// `attend` takes keys and values straight from memory. `attend_together` is for prompts with sequences for more than one tile: the warps
// of a block take a tile each, and the block brings keys and values to shared memory once for all. Both give a row the same numbers to the
// last bit: they run the same steps, with what the compiler could fuse written out.
//
// The products are `mma.m16n8k16`. The order of the contracted axis does not matter there as long as both sides have the same, so
// dims and keys are taken in an order in which each thread's operands lie side by side: thread t of a quad takes 8 dims (or
// keys) 8t..8t+7 of 32 with one load of 16 bytes. Values lie dim by dim in a page for the same reason.
//
// The warp of a sequence's last span puts the new token's key and value into their page before it reads it.
//
// Code that warps go through once is slow to fetch: what need not be unrolled is not. A multiprocessor holds ALONE_BLOCKS or TOGETHER_BLOCKS
// blocks at a time, by the registers that they need; as many are started.
//
// Shapes: qkv [rows, QKV_HEADS, HEAD_DIM] bf16; keys [pages, KEY_HEADS, PAGE, HEAD_DIM];
// values [pages, KEY_HEADS, HEAD_DIM, PAGE]; sums [rows, spans, HEADS, HEAD_DIM] f32; maxima [rows, spans, HEADS] (maximum in base 2, sum).

#define TILE_ROWS 16
#define TILE_SEQUENCES (TILE_ROWS / GROUP)
#define ATTENTION_WARPS 4
#define DIM_BLOCKS (HEAD_DIM / 32)
#define DIM_TILES (HEAD_DIM / 8)
// Tokens that are multiplied at a time, and pieces of 16 bytes of a token's key.
#define CHUNK 32
#define KEY_PIECES (HEAD_DIM / 8)

__device__ __forceinline__ void multiply(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two to the power of a number, which is not above zero.
__device__ __forceinline__ float power(float exponent) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
    return result;
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

// Rotated queries of a tile as operands: for each block of dims those of rows `quad` and of rows `quad + 8`.
typedef uint4 Queries[DIM_BLOCKS][2][32];

// Sequences of a tile: from a list, or a single one.
struct Members {
    const int* list;
    int single;

    __device__ __forceinline__ int operator[](int index) const { return list == nullptr ? single : list[index]; }
};

// Rotated query fragments of rows `quad` and `quad + 8` of a tile, in shared memory. A thread has both halves of what is rotated: its
// dims of block b and of block b + DIM_BLOCKS / 2.
__device__ __forceinline__ void load_queries(const Step& step, const Members& members, int rows, int key_head, uint4 (*queries)[2][32]) {
    const int lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
    const Rotation& rotation = step.rotation;
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
        const int row = quad + 8 * half;
        const bool used = row < rows;
        if (8 * half >= rows) {
#pragma unroll
            for (int block = 0; block < DIM_BLOCKS; block++) queries[block][half][lane] = make_uint4(0, 0, 0, 0);
            break;
        }
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

// A softmax under way: what a thread has of it, rows `quad` and `quad + 8`.
struct Partial {
    float out[DIM_TILES][4], maximum[2], total[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++) out[tile][0] = out[tile][1] = out[tile][2] = out[tile][3] = 0.0f;
        maximum[0] = maximum[1] = -INFINITY, total[0] = total[1] = 0.0f;
    }

    // Goes on with a chunk, of which `left` tokens are seen. `key(tile, block)` and `value(tile)` are this thread's operands; `loaded` is
    // called when the keys are not needed any more.
    template <typename Key, typename Value, typename Loaded>
    __device__ __forceinline__ void see(const Queries& queries, float scale, int left, Key key, Value value, Loaded loaded) {
        const int lane = threadIdx.x % 32, t = lane % 4;
        float score[4][4];
#pragma unroll
        for (int tile = 0; tile < 4; tile++) score[tile][0] = score[tile][1] = score[tile][2] = score[tile][3] = 0.0f;
#pragma unroll
        for (int block = 0; block < DIM_BLOCKS; block++) {
            const uint4 upper = queries[block][0][lane], lower = queries[block][1][lane];
#pragma unroll
            for (int tile = 0; tile < 4; tile++) {
                const uint4 k = key(tile, block);
                multiply(score[tile], upper.x, lower.x, upper.y, lower.y, k.x, k.y);
                multiply(score[tile], upper.z, lower.z, upper.w, lower.w, k.z, k.w);
            }
        }
        loaded();
        // This thread has keys 8t + 2 tile and the next.
        float highest[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int index = 0; index < 4; index++) {
                const bool seen = 8 * t + 2 * tile + index % 2 < left;
                score[tile][index] = seen ? __fmul_rn(score[tile][index], scale) : -INFINITY;
                highest[index / 2] = fmaxf(highest[index / 2], score[tile][index]);
            }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            highest[half] = fmaxf(highest[half], __shfl_xor_sync(FULL_WARP, highest[half], 1));
            highest[half] = fmaxf(highest[half], __shfl_xor_sync(FULL_WARP, highest[half], 2));
            shrink[half] = power(__fsub_rn(maximum[half], highest[half]));
            maximum[half] = highest[half];
            total[half] = __fmul_rn(total[half], shrink[half]);
        }
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int index = 0; index < 4; index++) {
                score[tile][index] = power(__fsub_rn(score[tile][index], maximum[index / 2]));
                total[index / 2] = __fadd_rn(total[index / 2], score[tile][index]);
            }
        u32 weight[4][2];
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            weight[tile][0] = pack(score[tile][0], score[tile][1]);
            weight[tile][1] = pack(score[tile][2], score[tile][3]);
        }
        // A token beyond the end may hold anything, NaN included, and its weight of zero would not hide that.
        const int here = left - 8 * t;
        const auto mask = [&](int place) { return here >= place + 2 ? ~0u : here == place + 1 ? 0xffffu : 0u; };
        const uint4 kept = make_uint4(mask(0), mask(2), mask(4), mask(6));
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) out[tile][index] = __fmul_rn(out[tile][index], shrink[index / 2]);
            const uint4 v = value(tile);
            multiply(out[tile], weight[0][0], weight[0][1], weight[1][0], weight[1][1], v.x & kept.x, v.y & kept.y);
            multiply(out[tile], weight[2][0], weight[2][1], weight[3][0], weight[3][1], v.z & kept.z, v.w & kept.w);
        }
    }

    // Gives every thread of a quad the totals of its rows.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            total[half] = __fadd_rn(total[half], __shfl_xor_sync(FULL_WARP, total[half], 1));
            total[half] = __fadd_rn(total[half], __shfl_xor_sync(FULL_WARP, total[half], 2));
        }
    }
};

// One warp: adds up the spans of a sequence for the query heads of one key head. Others wrote them: they are read past the first cache. Of
// several heads together, so that the warp waits once for all.
__device__ __forceinline__ void join(const Step& step, u64 sequence, int key_head, int count) {
    constexpr int each = HEAD_DIM / 32, together = GROUP < 8 ? GROUP : 8;
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int start = 0; start < GROUP; start += together) {
        const int heads = min(GROUP - start, together);
        const u64 first = sequence * step.spans * HEADS + key_head * GROUP + start;
        float maximum[together], total[together], joined[together][each];
#pragma unroll
        for (int head = 0; head < together; head++) {
            maximum[head] = -INFINITY, total[head] = 0.0f;
#pragma unroll
            for (int index = 0; index < each; index++) joined[head][index] = 0.0f;
        }
#pragma unroll 2
        for (int span = 0; span < count; span++) {
            float2 part[together], values[together][each / 2];
#pragma unroll
            for (int head = 0; head < together; head++) {
                const u64 place = first + u64(span) * HEADS + min(head, heads - 1);
                part[head] = __ldcg(step.maxima + place);
                const float2* sums = reinterpret_cast<const float2*>(step.sums + place * HEAD_DIM + lane * each);
#pragma unroll
                for (int index = 0; index < each / 2; index++) values[head][index] = __ldcg(sums + index);
            }
#pragma unroll
            for (int head = 0; head < together; head++) {
                const float highest = fmaxf(maximum[head], part[head].x);
                const float shrink = power(maximum[head] - highest), weight = power(part[head].x - highest);
                maximum[head] = highest;
                total[head] = total[head] * shrink + part[head].y * weight;
#pragma unroll
                for (int index = 0; index < each / 2; index++) {
                    joined[head][2 * index] = joined[head][2 * index] * shrink + values[head][index].x * weight;
                    joined[head][2 * index + 1] = joined[head][2 * index + 1] * shrink + values[head][index].y * weight;
                }
            }
        }
#pragma unroll
        for (int head = 0; head < together; head++) {
            if (head >= heads) break;
            const float inverse = 1.0f / total[head];
            u32* target = reinterpret_cast<u32*>(step.out + (sequence * HEADS + key_head * GROUP + start + head) * HEAD_DIM + lane * each);
#pragma unroll
            for (int index = 0; index < each / 2; index++)
                target[index] = pack(joined[head][2 * index] * inverse, joined[head][2 * index + 1] * inverse);
        }
    }
}

__device__ __forceinline__ int spans_of(const Step& step, int sequence) {
    return step.prompt_spans[sequence] + (step.lengths[sequence] + OWN_SPAN - 1) / OWN_SPAN;
}

// One warp: says that a span of some sequences is done, and adds up those of which it was the last.
__device__ __forceinline__ void arrive(const Step& step, const Members& members, int sequences, int head) {
    const int lane = threadIdx.x % 32;
    int count = 0;
    if (lane < sequences) count = spans_of(step, members[lane]);
    __threadfence();
    __syncwarp();
    bool is_last = false;
    if (lane < sequences) {
        int* arrivals = step.arrivals + members[lane] * KEY_HEADS + head;
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

// Puts down what a span gave: rows of a tile.
__device__ __forceinline__ void put_down(const Step& step, const Partial& part, const Members& members, int rows, int head, int span) {
    const int lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = quad + 8 * half;
        if (row >= rows) continue;
        const u64 place = (u64(members[row / GROUP]) * step.spans + span) * HEADS + head * GROUP + row % GROUP;
        if (t == 0) step.maxima[place] = make_float2(part.maximum[half], part.total[half]);
        float2* target = reinterpret_cast<float2*>(step.sums + place * HEAD_DIM);
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++)
            target[tile * 4 + t] = make_float2(part.out[tile][2 * half], part.out[tile][2 * half + 1]);
    }
}

// Copies 16 bytes to shared memory, without waiting.
__device__ __forceinline__ void bring(uint4* target, const u16* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(u32(__cvta_generic_to_shared(target))), "l"(source));
}

// One warp: puts the newest token's key and value into their page.
__device__ __forceinline__ void keep_newest(const Step& step, int sequence, int head, int place) {
    float low[2][HALF_EACH], high[2][HALF_EACH];
    rotated(step.qkv, step.rotation, sequence, HEADS + head, low[0], high[0]);
    rotated(step.qkv, step.rotation, sequence, HEADS + KEY_HEADS + head, low[1], high[1]);
    keep(step.keys, step.values, place, HEADS + head, low[0], high[0]);
    keep(step.keys, step.values, place, HEADS + KEY_HEADS + head, low[1], high[1]);
    __syncwarp();
}

// One warp: `count` tokens (1 or more) of `pages`, for the sequences `members`. With `has_newest` the last of them is to be put there first.
__device__ __forceinline__ void attend_span(const Step& step, const Members& members, int sequences, const int* pages, int count, int head,
                                            int span, bool has_newest, Queries& queries) {
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
            const uint4* source = reinterpret_cast<const uint4*>(step.keys + base + token * HEAD_DIM);
#pragma unroll
            for (int block = 0; block < DIM_BLOCKS; block++) key[tile][block] = source[block * 4 + t];
        }
    };
    const auto load_values = [&](u64 base, int within) {
#pragma unroll
        for (int tile = 0; tile < DIM_TILES; tile++)
            value[tile] = *reinterpret_cast<const uint4*>(step.values + base + (tile * 8 + quad) * PAGE + within + 8 * t);
    };
    // Of several chunks the newest token is not in the first.
    const int place = __shfl_sync(FULL_WARP, page_of_lane, (count - 1) / PAGE) * PAGE + (count - 1) % PAGE;
    if (has_newest && count <= CHUNK) keep_newest(step, members.single, head, place);
    u64 base = base_of(0);
    load_keys(base, 0);
    load_values(base, 0);
    if (has_newest && count > CHUNK) keep_newest(step, members.single, head, place);
    load_queries(step, members, rows, head, queries);
    __syncwarp();
    Partial part;
    part.clear();
#pragma unroll 1
    for (int start = 0; start < count; start += CHUNK) {
        const int next = start + CHUNK;
        part.see(
            queries, step.scale, count - start, [&](int tile, int block) { return key[tile][block]; }, [&](int tile) { return value[tile]; },
            [&]() {
                if (next >= count) return;
                base = base_of(next);
                load_keys(base, next % PAGE);
            });
        if (next < count) load_values(base, next % PAGE);
    }
    part.finish();
    put_down(step, part, members, rows, head, span);
}

// All spans of prompts that sequences for more than one tile share, from a list that the host makes; a block takes one at a time.
//
// Shapes: counts: (items of `attend`, .., items); all else as there.
extern "C" __global__ void __launch_bounds__(32 * ATTENTION_WARPS, TOGETHER_BLOCKS)
    attend_together(const u16* qkv, const u16* bias, const u16* query_norm, const u16* key_norm, float epsilon, const float2* table,
                    u16* keys, u16* values, float* sums, float2* maxima, int* arrivals, u16* out, float scale, int spans, const int4* items,
                    const int* item_heads, const int* members, const int* pages, const int* lengths, const int* prompt_spans,
                    const int* own, int own_pages, int rows_of_step, const int* counts) {
    // Keys and values of two chunks.
    __shared__ uint4 chunks[2][2][CHUNK * KEY_PIECES];
    __shared__ Queries queries_of_warps[ATTENTION_WARPS];
    const Step step = {qkv,   Rotation{bias, query_norm, key_norm, epsilon, table}, keys, values, sums, maxima, scale, spans, lengths,
                       prompt_spans, arrivals, out};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int index = blockIdx.x; index < counts[2]; index += gridDim.x) {
        const int4 item = items[index];
        const int head = item_heads[index], count = item.w & 0xffff, span = item.w >> 16;
        const int sequences = min(max(item.y - warp * TILE_SEQUENCES, 0), TILE_SEQUENCES), tile_rows = sequences * GROUP;
        const Members sharing = {members + item.x + warp * TILE_SEQUENCES, 0};
        const auto bring_chunk = [&](int start) {
            const u64 base = (u64(pages[item.z + start / PAGE]) * KEY_HEADS + head) * PAGE * HEAD_DIM;
            const int within = start % PAGE;
#pragma unroll
            for (int place = threadIdx.x; place < CHUNK * KEY_PIECES; place += 32 * ATTENTION_WARPS) {
                const int token = place / KEY_PIECES, piece = place % KEY_PIECES;
                uint4(*const two)[CHUNK * KEY_PIECES] = chunks[start / CHUNK % 2];
                // Neighbouring tokens, which are read at the same time, change places by half a line.
                bring(two[0] + token * KEY_PIECES + (piece ^ token % 2 * 4), keys + base + (within + token) * HEAD_DIM + piece * 8);
                bring(two[1] + place, values + base + place / 4 * PAGE + within + place % 4 * 8);
            }
        };
        bring_chunk(0);
        asm volatile("cp.async.commit_group;");
        Queries& queries = queries_of_warps[warp];
        if (sequences > 0) load_queries(step, sharing, tile_rows, head, queries);
        Partial part;
        part.clear();
#pragma unroll 1
        for (int start = 0; start < count; start += CHUNK) {
            if (start + CHUNK < count) bring_chunk(start + CHUNK);
            asm volatile("cp.async.commit_group;");
            asm volatile("cp.async.wait_group 1;");
            __syncthreads();
            if (sequences > 0) {
                const uint4(*const two)[CHUNK * KEY_PIECES] = chunks[start / CHUNK % 2];
                part.see(
                    queries, scale, count - start,
                    [&](int tile, int block) {
                        const int token = 8 * (quad / 2) + 2 * tile + quad % 2;
                        return two[0][token * KEY_PIECES + ((block * 4 + t) ^ quad % 2 * 4)];
                    },
                    [&](int tile) { return two[1][(tile * 8 + quad) * 4 + t]; }, []() {});
            }
            __syncthreads();
        }
        part.finish();
        put_down(step, part, sharing, tile_rows, head, span);
        if (sequences > 0) arrive(step, sharing, sequences, head);
    }
}

// All other spans of a step: first those of prompts, from the rest of the list, then those of the sequences' own tokens.
//
// An item is (members at, sequences, pages at, tokens | span << 16). Shapes: lengths [rows] of own tokens, the new one included (0: not in
// use); prompt_spans [rows]; own [rows, own_pages]; counts: (items, spans of the longest sequence's own tokens, items of `attend_together`,
// which come first); arrivals [rows, KEY_HEADS], all zero; out [rows, HEADS, HEAD_DIM] bf16.
extern "C" __global__ void __launch_bounds__(32 * ATTENTION_WARPS, ALONE_BLOCKS)
    attend(const u16* qkv, const u16* bias, const u16* query_norm, const u16* key_norm, float epsilon, const float2* table, u16* keys,
           u16* values, float* sums, float2* maxima, int* arrivals, u16* out, float scale, int spans, const int4* items,
           const int* item_heads, const int* members, const int* pages, const int* lengths, const int* prompt_spans, const int* own,
           int own_pages, int rows, const int* counts) {
    __shared__ Queries queries[ATTENTION_WARPS];
    const Step step = {qkv,   Rotation{bias, query_norm, key_norm, epsilon, table}, keys, values, sums, maxima, scale, spans, lengths,
                       prompt_spans, arrivals, out};
    // Few spans go to as many multiprocessors.
    const int warps = gridDim.x * ATTENTION_WARPS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int item_count = counts[0], own_count = rows * KEY_HEADS * counts[1], before = counts[2];
    int index = blockIdx.x + warp * gridDim.x, candidates = 0;
    u32 there = 0;
#pragma unroll 1
    while (true) {
        Members sharing = {nullptr, 0};
        int sequences = 1, tokens, head, span;
        const int* at;
        bool has_newest = false;
        if (index < item_count) {
            const int4 item = items[before + index];
            head = item_heads[before + index];
            sharing.list = members + item.x;
            sequences = item.y;
            at = pages + item.z;
            tokens = item.w & 0xffff;
            span = item.w >> 16;
            index += warps;
        } else {
            // Most sequences of a ragged batch have fewer spans than the longest: 32 candidates are looked at together.
            while (there == 0) {
                candidates = index - item_count;
                if (candidates >= own_count) return;
                const int candidate = candidates + lane * warps;
                there = __ballot_sync(FULL_WARP, candidate < own_count && candidate / KEY_HEADS / rows * OWN_SPAN <
                                                                              lengths[candidate / KEY_HEADS % rows]);
                index += 32 * warps;
            }
            const int place = candidates + (__ffs(there) - 1) * warps, own_span = place / KEY_HEADS / rows;
            there &= there - 1;
            head = place % KEY_HEADS;
            sharing.single = place / KEY_HEADS % rows;
            at = own + sharing.single * own_pages + own_span * (OWN_SPAN / PAGE);
            const int left = lengths[sharing.single] - own_span * OWN_SPAN;
            tokens = min(left, OWN_SPAN);
            span = prompt_spans[sharing.single] + own_span;
            has_newest = left <= OWN_SPAN;
        }
        attend_span(step, sharing, sequences, at, tokens, head, span, has_newest, queries[warp]);
        arrive(step, sharing, sequences, head);
    }
}
