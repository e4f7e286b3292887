// RMS norms (Zhang and Sennrich 2019) fused with what comes before them. The residual stream `x` is kept in 32 bits.
//
// Shapes: x [rows, HIDDEN] f32; added, out [rows, HIDDEN] bf16; weight [HIDDEN] bf16; tokens [rows]; table [VOCAB, HIDDEN] bf16.
// One block of NORM_THREADS threads for each row.

#define NORM_ITERATIONS ((HIDDEN / 8 + NORM_THREADS - 1) / NORM_THREADS)

// Where the row comes from.
enum Source { FROM_TABLE, FROM_SUM, FROM_STREAM };

template <Source SOURCE>
__device__ __forceinline__ void normalise(float* x, const uint4* before, const u16* weight, u16* out, float epsilon) {
    const u64 row = blockIdx.x;
    float4* stream = reinterpret_cast<float4*>(x + row * HIDDEN);
    float values[NORM_ITERATIONS][8];
    float squares = 0.0f;
#pragma unroll
    for (int turn = 0; turn < NORM_ITERATIONS; turn++) {
        const int place = turn * NORM_THREADS + threadIdx.x;
        if (place >= HIDDEN / 8) continue;
        float4 low = make_float4(0, 0, 0, 0), high = low;
        if (SOURCE != FROM_TABLE) {
            low = stream[2 * place];
            high = stream[2 * place + 1];
        }
        if (SOURCE != FROM_STREAM) {
            const uint4 added = before[place];
            low.x += first(added.x), low.y += second(added.x), low.z += first(added.y), low.w += second(added.y);
            high.x += first(added.z), high.y += second(added.z), high.z += first(added.w), high.w += second(added.w);
            stream[2 * place] = low;
            stream[2 * place + 1] = high;
        }
        const float eight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int index = 0; index < 8; index++) {
            values[turn][index] = eight[index];
            squares += eight[index] * eight[index];
        }
    }
    const float scale = rsqrtf(block_sum<NORM_THREADS>(squares) / HIDDEN + epsilon);
    uint4* target = reinterpret_cast<uint4*>(out + row * HIDDEN);
    const uint4* weights = reinterpret_cast<const uint4*>(weight);
#pragma unroll
    for (int turn = 0; turn < NORM_ITERATIONS; turn++) {
        const int place = turn * NORM_THREADS + threadIdx.x;
        if (place >= HIDDEN / 8) continue;
        const uint4 factor = weights[place];
        const float* v = values[turn];
        target[place] = make_uint4(pack(v[0] * scale * first(factor.x), v[1] * scale * second(factor.x)),
                                   pack(v[2] * scale * first(factor.y), v[3] * scale * second(factor.y)),
                                   pack(v[4] * scale * first(factor.z), v[5] * scale * second(factor.z)),
                                   pack(v[6] * scale * first(factor.w), v[7] * scale * second(factor.w)));
    }
}

// x = table[token]; out = norm(x)
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    embed_norm(const int* tokens, const u16* table, float* x, const u16* weight, u16* out, float epsilon) {
    const uint4* row = reinterpret_cast<const uint4*>(table + u64(tokens[blockIdx.x]) * HIDDEN);
    normalise<FROM_TABLE>(x, row, weight, out, epsilon);
}

// x += added; out = norm(x)
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    add_norm(const u16* added, float* x, const u16* weight, u16* out, float epsilon) {
    const uint4* row = reinterpret_cast<const uint4*>(added + u64(blockIdx.x) * HIDDEN);
    normalise<FROM_SUM>(x, row, weight, out, epsilon);
}

// out = norm(x)
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    only_norm(float* x, const u16* weight, u16* out, float epsilon) {
    normalise<FROM_STREAM>(x, nullptr, weight, out, epsilon);
}
