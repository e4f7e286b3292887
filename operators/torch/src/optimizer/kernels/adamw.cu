// Parts of the sum of squares, one for each block: [blocks]. The order of additions is fixed.
extern "C" __global__ void __launch_bounds__(256) square_sums(const float* values, double* partials, u64 count) {
    __shared__ double parts[8];
    double sum = 0.0;
    for (u64 place = u64(blockIdx.x) * 256 + threadIdx.x; place < count / 4; place += u64(gridDim.x) * 256) {
        const float4 four = reinterpret_cast<const float4*>(values)[place];
        // Exact in 64 bits but for the last additions.
        sum += double(four.x) * four.x + double(four.y) * four.y + (double(four.z) * four.z + double(four.w) * four.w);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < 8; warp++) sum += parts[warp];
    partials[blockIdx.x] = sum;
}

// A step of AdamW (Loshchilov and Hutter 2019) in one pass over memory.
//
// Shapes: all [count] with a count that is a multiple of 8.

struct Step {
    // Factor of the gradients; 1 - beta of each moment; what the second moment is multiplied with for its zero start; rate of the first
    // moment, its zero start included; epsilon; what decay leaves of a weight.
    float shrink, first, second, correction, rate, epsilon, keep;
};

__device__ __forceinline__ void update(float& weight, float& first, float& second, float gradient, const Step& step) {
    gradient *= step.shrink;
    first += step.first * (gradient - first);
    second += step.second * (gradient * gradient - second);
    weight = step.keep * weight - step.rate * first / (sqrtf(second * step.correction) + step.epsilon);
}

// Weights and moments in 32 bits; the same weights in 16 bits unless there are none. Each thread has four.
extern "C" __global__ void __launch_bounds__(256)
    adamw(float* weights, float* firsts, float* seconds, const float* gradients, u16* narrowed, u64 count, float shrink, float first,
          float second, float correction, float rate, float epsilon, float keep) {
    const u64 place = u64(blockIdx.x) * 256 + threadIdx.x;
    if (place >= count / 4) return;
    const Step step{shrink, first, second, correction, rate, epsilon, keep};
    float4 w = reinterpret_cast<float4*>(weights)[place], m = reinterpret_cast<float4*>(firsts)[place],
           v = reinterpret_cast<float4*>(seconds)[place];
    const float4 g = reinterpret_cast<const float4*>(gradients)[place];
    update(w.x, m.x, v.x, g.x, step);
    update(w.y, m.y, v.y, g.y, step);
    update(w.z, m.z, v.z, g.z, step);
    update(w.w, m.w, v.w, g.w, step);
    reinterpret_cast<float4*>(weights)[place] = w;
    reinterpret_cast<float4*>(firsts)[place] = m;
    reinterpret_cast<float4*>(seconds)[place] = v;
    if (narrowed != nullptr) reinterpret_cast<uint2*>(narrowed)[place] = make_uint2(pack(w.x, w.y), pack(w.z, w.w));
}

// A 32-bit float as 16 bits, up or down with 16 random bits: the carry of the lost bits makes the next number.
__device__ __forceinline__ u32 rounded(float value, u32 noise) { return (__float_as_uint(value) + noise) >> 16; }

// Everything in 16 bits, rounded at random (`stochastic.rs` says which bits). Each thread has eight, by two for a counter.
extern "C" __global__ void __launch_bounds__(256)
    adamw_rounding(u16* weights, u16* firsts, u16* seconds, const float* gradients, u64 count, float shrink, float first, float second,
                   float correction, float rate, float epsilon, float keep, u32 key_low, u32 key_high, u32 number, u32 buffer) {
    const u64 place = u64(blockIdx.x) * 256 + threadIdx.x;
    if (place >= count / 8) return;
    const Step step{shrink, first, second, correction, rate, epsilon, keep};
    float w[8], m[8], v[8];
    unpack(reinterpret_cast<uint4*>(weights)[place], w);
    unpack(reinterpret_cast<uint4*>(firsts)[place], m);
    unpack(reinterpret_cast<uint4*>(seconds)[place], v);
    const float4 low = reinterpret_cast<const float4*>(gradients)[2 * place], high = reinterpret_cast<const float4*>(gradients)[2 * place + 1];
    const float g[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    u32 words[3][4];
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        const u64 index = 4 * place + pair;
        u32 noise[4] = {u32(index), u32(index >> 32), number, buffer};
        philox(noise, key_low, key_high);
        const int one = 2 * pair, two = one + 1;
        update(w[one], m[one], v[one], g[one], step);
        update(w[two], m[two], v[two], g[two], step);
        words[0][pair] = rounded(w[one], noise[0] & 0xffff) | rounded(w[two], noise[2] & 0xffff) << 16;
        words[1][pair] = rounded(m[one], noise[0] >> 16) | rounded(m[two], noise[2] >> 16) << 16;
        words[2][pair] = rounded(v[one], noise[1] & 0xffff) | rounded(v[two], noise[3] & 0xffff) << 16;
    }
    reinterpret_cast<uint4*>(weights)[place] = make_uint4(words[0][0], words[0][1], words[0][2], words[0][3]);
    reinterpret_cast<uint4*>(firsts)[place] = make_uint4(words[1][0], words[1][1], words[1][2], words[1][3]);
    reinterpret_cast<uint4*>(seconds)[place] = make_uint4(words[2][0], words[2][1], words[2][2], words[2][3]);
}
