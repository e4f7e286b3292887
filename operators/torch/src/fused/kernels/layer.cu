// Element-wise work between the matrix products of a layer in training.

__device__ __forceinline__ float opening(float gate) { return 1.0f / (1.0f + __expf(-gate)); }

// out = silu(gate) * up (Shazeer 2020). Each thread makes eight values of a row.
//
// Shapes: gate_up [rows, 2, INTERMEDIATE] bf16; out [rows, INTERMEDIATE] bf16.
extern "C" __global__ void __launch_bounds__(256) gated(const u16* gate_up, u16* out) {
    const int place = blockIdx.y * 256 + threadIdx.x;
    if (place >= INTERMEDIATE / 8) return;
    const u64 row = blockIdx.x;
    const uint4* source = reinterpret_cast<const uint4*>(gate_up + row * 2 * INTERMEDIATE);
    float gate[8], up[8];
    unpack(source[place], gate), unpack(source[place + INTERMEDIATE / 8], up);
#pragma unroll
    for (int index = 0; index < 8; index++) up[index] *= gate[index] * opening(gate[index]);
    reinterpret_cast<uint4*>(out + row * INTERMEDIATE)[place] = pack_eight(up);
}

// Its backward pass, in place: the gradients of gate and up take their place, and what came out takes that of its gradient.
//
// Shapes: as above; inner [rows, INTERMEDIATE] bf16.
extern "C" __global__ void __launch_bounds__(256) gated_backward(u16* gate_up, u16* inner) {
    const int place = blockIdx.y * 256 + threadIdx.x;
    if (place >= INTERMEDIATE / 8) return;
    const u64 row = blockIdx.x;
    uint4* both = reinterpret_cast<uint4*>(gate_up + row * 2 * INTERMEDIATE);
    uint4* one = reinterpret_cast<uint4*>(inner + row * INTERMEDIATE);
    float gate[8], up[8], flow[8], out[8];
    unpack(both[place], gate), unpack(both[place + INTERMEDIATE / 8], up), unpack(one[place], flow);
#pragma unroll
    for (int index = 0; index < 8; index++) {
        const float open = opening(gate[index]), opened = gate[index] * open;
        out[index] = opened * up[index];
        gate[index] = flow[index] * up[index] * open * (1.0f + gate[index] * (1.0f - open));
        up[index] = flow[index] * opened;
    }
    both[place] = pack_eight(gate);
    both[place + INTERMEDIATE / 8] = pack_eight(up);
    one[place] = pack_eight(out);
}

// Lanes that have a head together, and heads of a block of four warps.
#define HEAD_LANES (HEAD_DIM / 8)
#define BLOCK_HEADS (128 / HEAD_LANES)
// Heads that a lane of `turn_back` reads before it works on the first of them.
#define IN_FLIGHT 2

__device__ __forceinline__ void unpack_four(uint2 four, float* values) {
    values[0] = first(four.x), values[1] = second(four.x), values[2] = first(four.y), values[3] = second(four.y);
}

// What a lane has of a head, as it is in memory: four dims of the lower half, and the four of the upper half that are turned with them.
struct Words {
    uint2 low, high;

    __device__ __forceinline__ void read(const u16* head) {
        const uint2* words = reinterpret_cast<const uint2*>(head);
        low = words[threadIdx.x % HEAD_LANES], high = words[threadIdx.x % HEAD_LANES + HEAD_LANES];
    }
};

// Cosine and sine for each of them, twice two.
struct Angles {
    float4 pairs[2];

    __device__ __forceinline__ void read(const float2* table, u32 row) {
        const float4* all = reinterpret_cast<const float4*>(table) + u64(row) * (HEAD_DIM / 4) + 2 * (threadIdx.x % HEAD_LANES);
        pairs[0] = all[0], pairs[1] = all[1];
    }
};

struct Slice {
    float low[4], high[4];

    __device__ __forceinline__ void of(Words words) { unpack_four(words.low, low), unpack_four(words.high, high); }

    __device__ __forceinline__ void read(const u16* head) {
        Words words;
        words.read(head);
        of(words);
    }

    __device__ __forceinline__ void write(u16* head) const {
        uint2* words = reinterpret_cast<uint2*>(head);
        words[threadIdx.x % HEAD_LANES] = make_uint2(pack(low[0], low[1]), pack(low[2], low[3]));
        words[threadIdx.x % HEAD_LANES + HEAD_LANES] = make_uint2(pack(high[0], high[1]), pack(high[2], high[3]));
    }

    // Product of two of them, summed over the head; for all lanes of a warp at once.
    __device__ __forceinline__ float dot(const Slice& other) const {
        float sum = 0.0f;
#pragma unroll
        for (int index = 0; index < 4; index++) sum += low[index] * other.low[index] + high[index] * other.high[index];
#pragma unroll
        for (int step = HEAD_LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
        return sum;
    }

    // Turns by the angles of a row, or back with sign -1.
    __device__ __forceinline__ void turn(const Angles& angles, float sign) {
        const float4 one = angles.pairs[0], two = angles.pairs[1];
        const float cosines[4] = {one.x, one.z, two.x, two.z}, sines[4] = {one.y, one.w, two.y, two.w};
#pragma unroll
        for (int index = 0; index < 4; index++) {
            const float turned = low[index] * cosines[index] - sign * high[index] * sines[index];
            high[index] = high[index] * cosines[index] + sign * low[index] * sines[index];
            low[index] = turned;
        }
    }
};

// Norms, where there are, and rotates queries and keys, in place or to rows of the attention, then values too. HEAD_LANES lanes for each
// head of each row of out.
//
// `sources` says for a row of the attention which token stands there: that token where it is its first row, -2 - token where it is a
// further copy, -1 for padding, which becomes zeros.
//
// Shapes: qkv [tokens, QKV_HEADS, HEAD_DIM] bf16; out [rows, QKV_HEADS, HEAD_DIM] bf16; sources [rows], or null where out is qkv; raw
// [tokens, HEADS + KEY_HEADS, HEAD_DIM] bf16, what was there before, and query_norm, key_norm [HEAD_DIM] bf16, or all three null; table
// [tokens, HEAD_DIM / 2] of cosine and sine.
extern "C" __global__ void __launch_bounds__(128)
    turn(const u16* qkv, u16* out, const int* sources, u16* raw, const u16* query_norm, const u16* key_norm, float epsilon,
         const float2* table, int rows) {
    const u32 item = blockIdx.x * BLOCK_HEADS + threadIdx.x / HEAD_LANES, row = item / QKV_HEADS;
    const int head = item % QKV_HEADS;
    const bool is_value = head >= HEADS + KEY_HEADS;
    const bool is_there = row < u32(rows) && !(is_value && sources == nullptr);
    const int source = !is_there ? -1 : sources == nullptr ? int(row) : sources[row];
    const int token = source < -1 ? -2 - source : source;
    const bool turns = token >= 0 && !is_value;
    Slice slice = {};
    if (token >= 0) slice.read(qkv + (u64(token) * QKV_HEADS + head) * HEAD_DIM);
    if (raw != nullptr) {
        if (turns && source >= 0) slice.write(raw + (u64(token) * (HEADS + KEY_HEADS) + head) * HEAD_DIM);
        const float scale = rsqrtf(slice.dot(slice) / HEAD_DIM + epsilon);
        if (turns) {
            Slice factor;
            factor.read(head < HEADS ? query_norm : key_norm);
#pragma unroll
            for (int index = 0; index < 4; index++) {
                slice.low[index] *= scale * factor.low[index];
                slice.high[index] *= scale * factor.high[index];
            }
        }
    }
    if (turns) {
        Angles angles;
        angles.read(table, token);
        slice.turn(angles, 1.0f);
    }
    if (is_there) slice.write(out + u64(item) * HEAD_DIM);
}

// What `turn_back` reads for a head of a token.
struct Flow {
    u32 token;
    int head;
    bool is_there, is_query, is_value;
    Words flow, before;
    Angles angles;
};

// The gradient of a head of a row of the attention.
__device__ __forceinline__ const u16* flow_of(const u16* queries, const u16* keys, const u16* values, u32 row, int head) {
    if (head < HEADS) return queries + (u64(row) * HEADS + head) * HEAD_DIM;
    if (head < HEADS + KEY_HEADS) return keys + (u64(row) * KEY_HEADS + head - HEADS) * HEAD_DIM;
    return values + (u64(row) * KEY_HEADS + head - HEADS - KEY_HEADS) * HEAD_DIM;
}

// The way back: from the gradients of what was attended with to those of what was projected, side by side, and each block's part of the
// gradients of the norms. Keys and values of a token that stands in several rows get the sum over these; its queries are of use in the
// first alone. HEAD_LANES lanes for each head of each token; all lanes of a block make the same turns.
//
// Shapes: queries [.., HEADS, HEAD_DIM], keys, values [.., KEY_HEADS, HEAD_DIM], out [tokens, QKV_HEADS, HEAD_DIM], all bf16; partials
// [blocks, 2, HEAD_DIM] f32 where there are norms; places [tokens], the first row of each, or null where that is the token itself;
// starts [tokens + 1], where the further rows of each token begin in copies, or null where there are none; the rest as above.
extern "C" __global__ void __launch_bounds__(128)
    turn_back(const u16* __restrict__ queries, const u16* __restrict__ keys, const u16* __restrict__ values,
              const int* __restrict__ places, const int* __restrict__ starts, const int* __restrict__ copies,
              const u16* __restrict__ raw, const u16* __restrict__ query_norm, const u16* __restrict__ key_norm, float epsilon,
              const float2* __restrict__ table, u16* __restrict__ out, float* __restrict__ partials, int tokens) {
    const u32 items = u32(tokens) * QKV_HEADS, stride = gridDim.x * BLOCK_HEADS, own = threadIdx.x / HEAD_LANES;
    Slice sums[2] = {};
    Words of_queries = {}, of_keys = {};
    if (raw != nullptr) of_queries.read(query_norm), of_keys.read(key_norm);
    for (u32 base = blockIdx.x * BLOCK_HEADS; base < items; base += IN_FLIGHT * stride) {
        Flow flows[IN_FLIGHT] = {};
#pragma unroll
        for (int index = 0; index < IN_FLIGHT; index++) {
            Flow& flow = flows[index];
            const u32 item = base + index * stride + own;
            flow.token = item / QKV_HEADS, flow.head = item % QKV_HEADS;
            flow.is_there = item < items;
            flow.is_query = flow.head < HEADS, flow.is_value = flow.head >= HEADS + KEY_HEADS;
            if (!flow.is_there) continue;
            const u32 place = places == nullptr ? flow.token : u32(places[flow.token]);
            flow.flow.read(flow_of(queries, keys, values, place, flow.head));
            if (flow.is_value) continue;
            flow.angles.read(table, flow.token);
            if (raw != nullptr) flow.before.read(raw + (u64(flow.token) * (HEADS + KEY_HEADS) + flow.head) * HEAD_DIM);
        }
#pragma unroll
        for (int index = 0; index < IN_FLIGHT; index++) {
            const Flow& flow = flows[index];
            Slice slice;
            slice.of(flow.flow);
            if (starts != nullptr && flow.is_there && !flow.is_query) {
                const int end = starts[flow.token + 1];
#pragma unroll 4
                for (int copy = starts[flow.token]; copy < end; copy++) {
                    Slice other;
                    other.read(flow_of(queries, keys, values, u32(copies[copy]), flow.head));
#pragma unroll
                    for (int dim = 0; dim < 4; dim++) slice.low[dim] += other.low[dim], slice.high[dim] += other.high[dim];
                }
            }
            if (!flow.is_value) slice.turn(flow.angles, -1.0f);
            if (raw != nullptr) {
                // Values, and what is beyond the last token, have zeros before: nothing comes to the sums.
                Slice before, factor, changed;
                before.of(flow.before);
                factor.of(flow.is_query ? of_queries : of_keys);
#pragma unroll
                for (int dim = 0; dim < 4; dim++) {
                    changed.low[dim] = slice.low[dim] * factor.low[dim];
                    changed.high[dim] = slice.high[dim] * factor.high[dim];
                }
                const float scale = rsqrtf(before.dot(before) / HEAD_DIM + epsilon);
                const float mean = changed.dot(before) * scale * scale / HEAD_DIM;
                const float of_query = flow.is_query ? scale : 0.0f, of_key = flow.is_query ? 0.0f : scale;
#pragma unroll
                for (int dim = 0; dim < 4; dim++) {
                    const float low = slice.low[dim] * before.low[dim], high = slice.high[dim] * before.high[dim];
                    sums[0].low[dim] += low * of_query, sums[0].high[dim] += high * of_query;
                    sums[1].low[dim] += low * of_key, sums[1].high[dim] += high * of_key;
                    if (flow.is_value) continue;
                    slice.low[dim] = scale * (changed.low[dim] - before.low[dim] * mean);
                    slice.high[dim] = scale * (changed.high[dim] - before.high[dim] * mean);
                }
            }
            if (flow.is_there) slice.write(out + (u64(flow.token) * QKV_HEADS + flow.head) * HEAD_DIM);
        }
    }
    if (raw == nullptr) return;
    // The lanes of a warp that have the same dims, then the warps.
    __shared__ float parts[4][2 * HEAD_DIM];
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        float* part = parts[threadIdx.x / 32] + which * HEAD_DIM;
#pragma unroll
        for (int dim = 0; dim < 4; dim++) {
            float low = sums[which].low[dim], high = sums[which].high[dim];
#pragma unroll
            for (int step = HEAD_LANES; step < 32; step *= 2) {
                low += __shfl_xor_sync(FULL_WARP, low, step);
                high += __shfl_xor_sync(FULL_WARP, high, step);
            }
            if (lane >= HEAD_LANES) continue;
            part[4 * lane + dim] = low;
            part[4 * lane + dim + HEAD_DIM / 2] = high;
        }
    }
    __syncthreads();
    for (int place = threadIdx.x; place < 2 * HEAD_DIM; place += 128) {
        partials[u64(blockIdx.x) * 2 * HEAD_DIM + place] = parts[0][place] + parts[1][place] + parts[2][place] + parts[3][place];
    }
}

// Words of eight values in a row of what attention gives.
#define OUT_WORDS (HEADS * HEAD_DIM / 8)

// The rows of the attention from those of the pass: of each token in its first row, zeros in all others. `sources` as above.
//
// Shapes: x [tokens, HEADS, HEAD_DIM], out [rows, HEADS, HEAD_DIM] bf16; sources [rows].
extern "C" __global__ void __launch_bounds__(256) place(const uint4* x, uint4* out, const int* sources, int rows) {
    const u32 item = blockIdx.x * 256 + threadIdx.x, row = item / OUT_WORDS;
    if (row >= u32(rows)) return;
    const int source = sources[row];
    uint4 words = make_uint4(0, 0, 0, 0);
    if (source >= 0) words = x[u64(source) * OUT_WORDS + item % OUT_WORDS];
    out[item] = words;
}

// The way back: the rows of the pass from the first rows of its tokens.
//
// Shapes: x [rows, HEADS, HEAD_DIM], out [tokens, HEADS, HEAD_DIM] bf16; sources [rows].
extern "C" __global__ void __launch_bounds__(256) lift(const uint4* x, uint4* out, const int* sources, int rows) {
    const u32 item = blockIdx.x * 256 + threadIdx.x, row = item / OUT_WORDS;
    if (row >= u32(rows)) return;
    const int source = sources[row];
    if (source >= 0) out[u64(source) * OUT_WORDS + item % OUT_WORDS] = x[item];
}

// Joins attention to two sets of keys by their log-sum-exps, in place of the first (Dao 2023, FlashAttention-2). HEAD_LANES lanes for each
// head of each row.
//
// Shapes: out, part [rows, HEADS, HEAD_DIM] bf16; sums [HEADS, stride], of which rows are used, and part_sums [HEADS, rows] f32.
extern "C" __global__ void __launch_bounds__(128)
    join(u16* out, const u16* part, float* sums, const float* part_sums, int stride, int rows) {
    const u32 item = blockIdx.x * BLOCK_HEADS + threadIdx.x / HEAD_LANES, row = item / HEADS;
    const int head = item % HEADS;
    if (row >= u32(rows)) return;
    float* place = sums + u64(head) * stride + row;
    const float one = *place, two = part_sums[u64(head) * rows + row];
    const float top = fmaxf(one, two), both = top + logf(expf(one - top) + expf(two - top));
    const float share = expf(one - both), other = expf(two - both);
    Slice slice, added;
    slice.read(out + u64(item) * HEAD_DIM);
    added.read(part + u64(item) * HEAD_DIM);
#pragma unroll
    for (int index = 0; index < 4; index++) {
        slice.low[index] = slice.low[index] * share + added.low[index] * other;
        slice.high[index] = slice.high[index] * share + added.high[index] * other;
    }
    slice.write(out + u64(item) * HEAD_DIM);
    // All lanes have read it.
    __syncwarp();
    if (threadIdx.x % HEAD_LANES == 0) *place = both;
}
