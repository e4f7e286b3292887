// Backward pass of RMS norms (Zhang and Sennrich 2019) over rows of HIDDEN values: y = x r w with r = 1 / rms(x).
//
// Shapes: x, gradient, residual, out [rows, HIDDEN] bf16; weight [HIDDEN] bf16; partials [blocks, HIDDEN] f32.

#define NORM_ITERATIONS ((HIDDEN / 8 + NORM_THREADS - 1) / NORM_THREADS)

// out = dx + residual, and each block's part of the weight's gradient. A block takes every gridDim.x-th row, a thread the same columns of
// all of them.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    norm_backward(const u16* x, const u16* weight, const u16* gradient, const u16* residual, u16* out, float* partials, float epsilon,
                  int rows) {
    // Two of them, so that one synchronisation for each row is enough.
    __shared__ float2 parts[2][NORM_THREADS / 32];
    const uint4* weights = reinterpret_cast<const uint4*>(weight);
    float of_weight[NORM_ITERATIONS][8] = {};
    int parity = 0;
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x, parity ^= 1) {
        const uint4* inputs = reinterpret_cast<const uint4*>(x + row * HIDDEN);
        const uint4* gradients = reinterpret_cast<const uint4*>(gradient + row * HIDDEN);
        uint4 kept_inputs[NORM_ITERATIONS], kept_gradients[NORM_ITERATIONS];
        float squares = 0.0f, along = 0.0f;
#pragma unroll
        for (int turn = 0; turn < NORM_ITERATIONS; turn++) {
            const int place = turn * NORM_THREADS + threadIdx.x;
            if (place >= HIDDEN / 8) continue;
            kept_inputs[turn] = inputs[place];
            kept_gradients[turn] = gradients[place];
            float value[8], flow[8], factor[8];
            unpack(kept_inputs[turn], value), unpack(kept_gradients[turn], flow), unpack(weights[place], factor);
#pragma unroll
            for (int index = 0; index < 8; index++) {
                squares += value[index] * value[index];
                along += value[index] * flow[index] * factor[index];
            }
        }
        squares = warp_sum(squares), along = warp_sum(along);
        if (threadIdx.x % 32 == 0) parts[parity][threadIdx.x / 32] = make_float2(squares, along);
        __syncthreads();
        squares = along = 0.0f;
#pragma unroll
        for (int warp = 0; warp < NORM_THREADS / 32; warp++) squares += parts[parity][warp].x, along += parts[parity][warp].y;
        const float scale = rsqrtf(squares / HIDDEN + epsilon);
        // d x = r (g w - n mean(g w n)) with n = x r.
        const float mean = along * scale * scale / HIDDEN;
        const uint4* residuals = reinterpret_cast<const uint4*>(residual + row * HIDDEN);
        uint4* target = reinterpret_cast<uint4*>(out + row * HIDDEN);
#pragma unroll
        for (int turn = 0; turn < NORM_ITERATIONS; turn++) {
            const int place = turn * NORM_THREADS + threadIdx.x;
            if (place >= HIDDEN / 8) continue;
            float value[8], flow[8], factor[8], result[8] = {};
            unpack(kept_inputs[turn], value), unpack(kept_gradients[turn], flow), unpack(weights[place], factor);
            if (residual != nullptr) unpack(residuals[place], result);
#pragma unroll
            for (int index = 0; index < 8; index++) {
                result[index] += scale * (flow[index] * factor[index] - value[index] * mean);
                of_weight[turn][index] += flow[index] * value[index] * scale;
            }
            target[place] = pack_eight(result);
        }
    }
    float4* part = reinterpret_cast<float4*>(partials + u64(blockIdx.x) * HIDDEN);
#pragma unroll
    for (int turn = 0; turn < NORM_ITERATIONS; turn++) {
        const int place = turn * NORM_THREADS + threadIdx.x;
        if (place >= HIDDEN / 8) continue;
        const float* sums = of_weight[turn];
        part[2 * place] = make_float4(sums[0], sums[1], sums[2], sums[3]);
        part[2 * place + 1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
    }
}
