// Draws the next token of a row by inverting its cumulative distribution at the row's own random number.
//
// Sums over segments of the vocabulary come first (`sum_plain`, `sum_any`): one warp for each segment, which it holds in registers, so
// that the logits are read once. Then one block for each draw finds the segment and the token in it (`pick_plain`, `pick_any`). Sums are
// added in a fixed order: a draw depends on its own logits and parameters alone.
//
// Shapes: logits [rows, VOCAB] f32; draws: which logits and which sequence; params, next [sequences]; results [draws].

#define SEGMENTS 128
// Tokens of a segment, a multiple of what a warp reads at once.
#define SEGMENT ((VOCAB + 128 * SEGMENTS - 1) / (128 * SEGMENTS) * 128)
#define SEGMENT_READS (SEGMENT / 128)
#define SUM_WARPS 8
#define PICK_THREADS 128
#define CUT_THREADS 1024
#define MOST_STOPS 16

// What the host says of one sequence, when it enters.
struct Params {
    u32 stream[2], seed[2], sample;
    float temperature;  // 0: the most likely token
    int top_k;          // 0: all
    float top_p;        // 1: all
    float least_share;  // of the largest probability; 0: all
    float repetition, presence, frequency;
    int least_tokens;  // before a stop token
    int is_limited;    // whether `allowed` holds for it
    int stop_count;
    int stops[MOST_STOPS];
    int padding;
};

struct Draw {
    int source, sequence, position;  // position: tokens of the completion so far
    int padding;
};

struct Result {
    int token;
    float logprob, truncated_logprob, entropy;
};

// 48 random bits as a number in [0, 1), as `philox.rs` draws them.
__device__ double uniform(const Params& params, u32 position) {
    u32 words[4] = {params.stream[0], params.stream[1], params.sample, position};
    philox(words, params.seed[0], params.seed[1]);
    return double((u64(words[0]) << 16) | (words[1] >> 16)) / double(1ull << 48);
}

// Penalties, forbidden tokens and temperature. `counts` [VOCAB]: times in the completion, and 0x8000 when in the prompt.
struct Adjusted {
    const float* logits;
    const Params* params;
    const u16* counts;
    const u32* allowed;
    int position;
    float factor;

    __device__ float at(int token) const {
        float logit = logits[token];
        if (counts != nullptr) {
            const int seen = counts[token];
            if (seen != 0) logit = logit > 0 ? logit / params->repetition : logit * params->repetition;
            const int times = seen & 0x7fff;
            if (times > 0) logit -= params->presence + params->frequency * times;
        }
        if (allowed != nullptr && params->is_limited && !(allowed[token / 32] >> (token % 32) & 1)) return -INFINITY;
        if (position < params->least_tokens)
            for (int index = 0; index < params->stop_count; index++)
                if (params->stops[index] == token) return -INFINITY;
        return logit * factor;
    }
    __device__ float4 four(int token) const { return make_float4(at(token), at(token + 1), at(token + 2), at(token + 3)); }
};

struct Plain {
    const float* logits;
    float factor;

    __device__ float at(int token) const { return logits[token] * factor; }
    __device__ float4 four(int token) const {
        float4 v = *reinterpret_cast<const float4*>(logits + token);
        v.x *= factor, v.y *= factor, v.z *= factor, v.w *= factor;
        return v;
    }
};

// What truncation keeps: values above `value`, and of those equal to it the first `ties`.
struct Cut {
    float value;
    int ties;
};

// Sums of a segment relative to its largest value: weights, distances times weights, weights above the cut, and tokens at the cut.
struct Part {
    float largest;
    int best;
    float total, moment, kept;
    int ties;
};

template <typename Values>
__device__ __forceinline__ void sum_segment(const Values& values, Cut cut, int segment, Part* part) {
    const int lane = threadIdx.x % 32, start = segment * SEGMENT, end = min(VOCAB, start + SEGMENT);
    float4 held[SEGMENT_READS];
#pragma unroll
    for (int read = 0; read < SEGMENT_READS; read++) {
        const int token = start + read * 128 + lane * 4;
        held[read] = token < end ? values.four(token) : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    }
    float largest = -INFINITY;
    int best = VOCAB;
#pragma unroll
    for (int read = 0; read < SEGMENT_READS; read++) {
        const float four[4] = {held[read].x, held[read].y, held[read].z, held[read].w};
#pragma unroll
        for (int index = 0; index < 4; index++)
            // A value that is no number wins and stays, so that it is seen.
            if (largest == largest && !(four[index] <= largest)) largest = four[index], best = start + read * 128 + lane * 4 + index;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, largest, step);
        const int place = __shfl_xor_sync(FULL_WARP, best, step);
        if (other > largest || (other != other && largest == largest) || (other == largest && place < best))
            largest = other, best = place;
    }
    float total = 0.0f, moment = 0.0f, kept = 0.0f;
    int ties = 0;
    if (largest != -INFINITY) {
#pragma unroll
        for (int read = 0; read < SEGMENT_READS; read++) {
            const float four[4] = {held[read].x, held[read].y, held[read].z, held[read].w};
#pragma unroll
            for (int index = 0; index < 4; index++) {
                const float distance = four[index] - largest;
                const float weight = expf(distance);
                total += weight;
                // Impossible tokens add nothing to the entropy.
                moment += weight > 0.0f ? distance * weight : 0.0f;
                kept += four[index] > cut.value ? weight : 0.0f;
                ties += four[index] == cut.value;
            }
        }
    }
    total = warp_sum(total), moment = warp_sum(moment), kept = warp_sum(kept), ties = warp_sum(ties);
    if (lane == 0) *part = Part{largest, best, total, moment, kept, ties};
}

// One warp: the token between `start` and `end` at which the cumulative weight, `reached` before them, passes `target`; the last one that
// is kept if rounding passes all, -1 if none is. The first `ties` of those at the cut are kept.
template <typename Values>
__device__ int find_passing(const Values& values, Cut cut, float largest, int start, int end, double reached, double target, int ties) {
    const int lane = threadIdx.x % 32;
    int last = -1, tied = 0;
    for (int base = start; base < end; base += 32) {
        const int token = base + lane;
        const float value = token < end ? values.at(token) : -INFINITY;
        const bool is_tie = cut.ties > 0 && value == cut.value;
        const u32 tie_mask = __ballot_sync(FULL_WARP, is_tie);
        const int rank = tied + __popc(tie_mask & ((1u << lane) - 1));
        const bool is_kept = value > cut.value || (is_tie && rank < ties);
        const double weight = is_kept ? double(expf(value - largest)) : 0.0;
        double running = weight;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const double other = __shfl_up_sync(FULL_WARP, running, step);
            if (lane >= step) running += other;
        }
        const u32 passed = __ballot_sync(FULL_WARP, weight > 0.0 && reached + running > target);
        if (passed != 0) return base + __ffs(passed) - 1;
        const u32 possible = __ballot_sync(FULL_WARP, weight > 0.0);
        if (possible != 0) last = base + 31 - __clz(possible);
        reached += __shfl_sync(FULL_WARP, running, 31);
        tied += __popc(tie_mask);
    }
    return last;
}

// One block of PICK_THREADS threads, one for each segment: the token of a draw and what is said of it.
template <typename Values>
__device__ void pick(const Values& values, const Params& params, int position, Cut cut, const Part* parts, int* next, Result* result) {
    __shared__ Part shared[SEGMENTS];
    __shared__ double weights[SEGMENTS], scaled[SEGMENTS];
    __shared__ int used[SEGMENTS];
    for (int segment = threadIdx.x; segment < SEGMENTS; segment += PICK_THREADS) shared[segment] = parts[segment];
    __syncthreads();
    float largest = -INFINITY;
    int best = VOCAB, ties_left = cut.ties;
    for (int segment = 0; segment < SEGMENTS; segment++) {
        const float value = shared[segment].largest;
        if (largest == largest && !(value <= largest)) largest = value, best = shared[segment].best;
        if (threadIdx.x == 0) used[segment] = min(ties_left, shared[segment].ties), ties_left -= used[segment];
    }
    __syncthreads();
    const double tie_weight = cut.ties > 0 ? double(expf(cut.value - largest)) : 0.0;
    for (int segment = threadIdx.x; segment < SEGMENTS; segment += PICK_THREADS) {
        const float own = shared[segment].largest;
        // A segment without possible tokens has nothing to add; one that is no number makes everything so.
        scaled[segment] = own == -INFINITY ? 0.0 : double(expf(own - largest));
        weights[segment] = scaled[segment] * shared[segment].kept + used[segment] * tie_weight;
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    double total = 0.0, moment = 0.0, kept = 0.0;
    for (int segment = threadIdx.x; segment < SEGMENTS; segment += 32) {
        if (scaled[segment] == 0.0) continue;
        const Part& part = shared[segment];
        total += scaled[segment] * part.total;
        moment += scaled[segment] * (part.moment + double(part.largest - largest) * part.total);
        kept += weights[segment];
    }
    total = warp_sum(total), moment = warp_sum(moment), kept = warp_sum(kept);
    int chosen = best;
    const bool greedy = params.temperature <= 0.0f;
    if (!greedy) {
        const double target = uniform(params, position) * kept;
        // The segment in which the cumulative sum passes the target; the last one with any weight if rounding passes all.
        double before = 0.0, start_of_mine = 0.0;
        int mine = -1;
        for (int segment = 0; segment < SEGMENTS; segment++) {
            const double weight = weights[segment];
            if (weight > 0.0 && before <= target) mine = segment, start_of_mine = before;
            before += weight;
        }
        if (mine >= 0) {
            const int start = mine * SEGMENT, end = min(VOCAB, start + SEGMENT);
            const int found = find_passing(values, cut, largest, start, end, start_of_mine, target, used[mine]);
            if (found >= 0) chosen = found;
        }
    }
    if (threadIdx.x == 0) {
        const float value = values.at(chosen);
        const double log_total = log(total);
        next[0] = chosen;
        result->token = chosen;
        result->logprob = float(double(value - largest) - log_total);
        result->truncated_logprob = greedy ? 0.0f : float(double(value - largest) - log(kept));
        result->entropy = float(log_total - moment / total);
    }
}

__device__ __forceinline__ float factor_of(const Params& params) {
    return params.temperature > 0.0f ? 1.0f / params.temperature : 1.0f;
}

// Plain sampling: no penalties, no forbidden tokens, no truncation. Grid (SEGMENTS / SUM_WARPS, draws); parts [draws, SEGMENTS].
extern "C" __global__ void __launch_bounds__(32 * SUM_WARPS)
    sum_plain(const float* logits, const Draw* draws, const Params* params, Part* parts) {
    const Draw mine = draws[blockIdx.y];
    if (mine.sequence < 0) return;
    const Plain values = {logits + u64(mine.source) * VOCAB, factor_of(params[mine.sequence])};
    const int segment = blockIdx.x * SUM_WARPS + threadIdx.x / 32;
    sum_segment(values, Cut{-INFINITY, 0}, segment, parts + blockIdx.y * SEGMENTS + segment);
}

extern "C" __global__ void __launch_bounds__(PICK_THREADS)
    pick_plain(const float* logits, const Draw* draws, const Params* params, const Part* parts, int* next, Result* results) {
    const Draw mine = draws[blockIdx.x];
    if (mine.sequence < 0) return;
    const Params& own = params[mine.sequence];
    const Plain values = {logits + u64(mine.source) * VOCAB, factor_of(own)};
    pick(values, own, mine.position, Cut{-INFINITY, 0}, parts + blockIdx.x * SEGMENTS, next + mine.sequence, results + blockIdx.x);
}

// A float as an integer of the same order.
__device__ __forceinline__ u32 ordered(float value) {
    const u32 bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

#define RADIX 2048

// Finds, from the largest value down, the value at which a cumulative measure of the tokens reaches `target`: their number (weights of
// 1), or their probability in units of 2^-32 of the largest. Gives its key, and the measure above it. Integers, so that the
// order of additions does not matter.
template <bool BY_WEIGHT, typename Values>
__device__ void select(const Values& values, float largest, u64 target, u32& key, u64& above) {
    __shared__ u64 histogram[RADIX];
    __shared__ u32 found;
    __shared__ u64 found_above;
    u32 prefix = 0;
    above = 0;
    const int shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
    for (int level = 0; level < 3; level++) {
        const int shift = shifts[level], size = 1 << widths[level];
        for (int bin = threadIdx.x; bin < RADIX; bin += blockDim.x) histogram[bin] = 0;
        __syncthreads();
        for (int token = threadIdx.x; token < VOCAB; token += blockDim.x) {
            const float value = values.at(token);
            const u32 mine = ordered(value);
            if (level > 0 && mine >> (shift + widths[level]) != prefix) continue;
            const u64 weight = BY_WEIGHT ? u64(double(expf(value - largest)) * 4294967296.0) : 1;
            if (weight > 0) atomicAdd(histogram + (mine >> shift & (size - 1)), weight);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u64 reached = above;
            int bin = size - 1, last = 0;
            u64 before_last = reached;
            bool passed = false;
            for (; bin >= 0; bin--) {
                if (histogram[bin] == 0) continue;
                last = bin, before_last = reached;
                reached += histogram[bin];
                if (reached >= target) { passed = true; break; }
            }
            // Fewer than asked for: the smallest that there is.
            found = passed ? bin : last;
            found_above = before_last;
        }
        __syncthreads();
        prefix = prefix << widths[level] | found;
        above = found_above;
        __syncthreads();
    }
    key = prefix;
}

// The largest value, given to all threads of a block.
template <typename Values>
__device__ float find_largest(const Values& values) {
    __shared__ float maxima[CUT_THREADS / 32];
    float largest = -INFINITY;
    for (int token = threadIdx.x; token < VOCAB; token += CUT_THREADS) largest = fmaxf(largest, values.at(token));
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, step));
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int warp = 0; warp < CUT_THREADS / 32; warp++) largest = fmaxf(largest, maxima[warp]);
    __syncthreads();
    return largest;
}

template <typename Values>
__device__ Cut find_cut(const Values& values, const Params& params) {
    Cut cut = {-INFINITY, 0};
    if (params.temperature <= 0.0f) return cut;
    const float largest = find_largest(values);
    u32 key;
    u64 above;
    if (params.top_k > 0 && params.top_k < VOCAB) {
        select<false>(values, largest, params.top_k, key, above);
        cut = {unordered(key), int(params.top_k - above)};
    }
    if (params.top_p < 1.0f) {
        // Mass of what top-k left, in the same units and by the same roundings as `select`.
        __shared__ u64 left;
        if (threadIdx.x == 0) left = 0;
        __syncthreads();
        u64 mine = 0;
        for (int token = threadIdx.x; token < VOCAB; token += blockDim.x) {
            const float value = values.at(token);
            if (value > cut.value) mine += u64(double(expf(value - largest)) * 4294967296.0);
        }
        atomicAdd(&left, mine);
        __syncthreads();
        const u64 each = cut.ties > 0 ? u64(double(expf(cut.value - largest)) * 4294967296.0) : 0;
        const u64 mass = left + each * cut.ties;
        const u64 target = max(u64(1), u64(ceil(double(mass) * double(params.top_p))));
        select<true>(values, largest, target, key, above);
        const float value = unordered(key);
        if (value >= cut.value) {
            const u64 weight = max(u64(1), u64(double(expf(value - largest)) * 4294967296.0));
            const u64 missing = target > above ? target - above : 1;
            int ties = int(min(u64(VOCAB), (missing + weight - 1) / weight));
            if (value == cut.value && cut.ties > 0) ties = min(ties, cut.ties);
            cut = {value, max(1, ties)};
        }
        __syncthreads();
    }
    if (params.least_share > 0.0f) {
        // Just below the bound, so that a token at the bound is above it.
        const float bound = nextafterf(largest + logf(params.least_share), -INFINITY);
        if (bound > cut.value || (bound == cut.value && cut.ties == 0)) cut = {bound, 0};
    }
    return cut;
}

// Tables of what is not plain: `counts` [sequences, VOCAB] and `allowed` [sequences, VOCAB / 32] may be null.
__device__ __forceinline__ Adjusted adjusted(const float* logits, const Draw& mine, const Params& own, const u16* counts, const u32* allowed) {
    return {logits + u64(mine.source) * VOCAB, &own, counts == nullptr ? nullptr : counts + u64(mine.sequence) * VOCAB,
            allowed == nullptr ? nullptr : allowed + u64(mine.sequence) * ((VOCAB + 31) / 32), mine.position, factor_of(own)};
}

// Where each draw's distribution is cut, cuts [draws].
extern "C" __global__ void __launch_bounds__(CUT_THREADS)
    cut_any(const float* logits, const Draw* draws, const Params* params, const u16* counts, const u32* allowed, Cut* cuts) {
    const Draw mine = draws[blockIdx.x];
    if (mine.sequence < 0) return;
    const Params& own = params[mine.sequence];
    const Cut cut = find_cut(adjusted(logits, mine, own, counts, allowed), own);
    if (threadIdx.x == 0) cuts[blockIdx.x] = cut;
}

extern "C" __global__ void __launch_bounds__(32 * SUM_WARPS)
    sum_any(const float* logits, const Draw* draws, const Params* params, const u16* counts, const u32* allowed, const Cut* cuts,
            Part* parts) {
    const Draw mine = draws[blockIdx.y];
    if (mine.sequence < 0) return;
    const int segment = blockIdx.x * SUM_WARPS + threadIdx.x / 32;
    const Adjusted values = adjusted(logits, mine, params[mine.sequence], counts, allowed);
    sum_segment(values, cuts[blockIdx.y], segment, parts + blockIdx.y * SEGMENTS + segment);
}

extern "C" __global__ void __launch_bounds__(PICK_THREADS)
    pick_any(const float* logits, const Draw* draws, const Params* params, u16* counts, const u32* allowed, const Cut* cuts,
             const Part* parts, int* next, Result* results) {
    const Draw mine = draws[blockIdx.x];
    if (mine.sequence < 0) return;
    const Params& own = params[mine.sequence];
    const Adjusted values = adjusted(logits, mine, own, counts, allowed);
    pick(values, own, mine.position, cuts[blockIdx.x], parts + blockIdx.x * SEGMENTS, next + mine.sequence, results + blockIdx.x);
    if (threadIdx.x == 0 && counts != nullptr) {
        u16* count = counts + u64(mine.sequence) * VOCAB + next[mine.sequence];
        if ((*count & 0x7fff) < 0x7fff) *count += 1;
    }
}
