#include <algorithm>

#include "check.h"
#include "../router.cu"

using Ids = std::vector<uint32_t>;

// The `count` largest of `scores`, the lower id on a tie.
Ids largest_of(const std::vector<double>& scores, size_t count) {
    Ids ids(scores.size());
    for (size_t i = 0; i < ids.size(); i++) ids[i] = i;
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return scores[a] > scores[b]; });
    ids.resize(count);
    return ids;
}

void check_route(int tokens, int experts, int k, int groups, int kept, bool normalise, bool ties) {
    auto logits = numbers<float>(tokens * experts, 3);
    if (ties) {
        for (float& x : logits) x = std::round(x);
    }
    std::vector<uint32_t> ids(tokens * k);
    std::vector<float> weights(tokens * k);
    size_t bytes = 4 * 4 * (2 * experts + groups + 2 * k);
    emulated::launch({(unsigned)(tokens + 3) / 4}, 128, bytes, [&] {
        route(logits.data(), ids.data(), weights.data(), tokens, experts, k, groups, kept, normalise, 16);
    });
    Comparison choice{"chosen experts", 0}, weight{"weights", 1e-5};
    for (int t = 0; t < tokens; t++) {
        std::vector<double> scores(experts), open;
        double sum = 0, chosen_sum = 0;
        for (int e = 0; e < experts; e++) sum += scores[e] = std::exp(wide(logits[t * experts + e]));
        for (double& score : scores) score /= sum;
        open = scores;
        if (groups > 0) {
            int size = experts / groups;
            std::vector<double> best(groups), masked(experts, 0);
            for (int e = 0; e < experts; e++) best[e / size] = max(best[e / size], scores[e]);
            for (int group : largest_of(best, kept)) {
                for (int e = group * size; e < (group + 1) * size; e++) masked[e] = scores[e];
            }
            open = masked;
        }
        Ids chosen = largest_of(open, k);
        std::sort(chosen.begin(), chosen.end());
        for (int id : chosen) chosen_sum += scores[id];
        for (int i = 0; i < k; i++) {
            choice.add(ids[t * k + i], chosen[i]);
            weight.add(weights[t * k + i], scores[chosen[i]] * (normalise ? 1 / chosen_sum : 16));
        }
    }
}

void check_sort(int routes, int experts, int per_row) {
    std::vector<uint32_t> ids, rows(routes), starts(experts + 1), places(routes);
    for (int i = 0; i < routes; i++) ids.push_back((uint32_t)((number() + 1) * 0.499f * experts));
    emulated::launch({(unsigned)experts}, 256, 0, [&] { sort_routes(ids.data(), routes, per_row, rows.data(), starts.data(), places.data()); });
    Comparison sorted{"sorted routes", 0};
    int place = 0;
    for (int e = 0; e < experts; e++) {
        sorted.add(starts[e], place);
        for (int i = 0; i < routes; i++) {
            if (ids[i] != (uint32_t)e) continue;
            sorted.add(places[i], place), sorted.add(rows[place], i / per_row);
            place++;
        }
    }
    sorted.add(starts[experts], routes);
}

int main() {
    in_all_ways([] {
        check_route(9, 64, 6, 0, 0, false, false);
        check_route(5, 160, 6, 8, 3, false, false);
        check_route(6, 16, 4, 4, 2, true, true);
        check_route(3, 8, 6, 4, 1, false, true);  // fewer experts in the kept group than are chosen
        check_sort(0, 4, 1);
        check_sort(700, 9, 6);
        check_sort(256, 3, 2);

        int tokens = 3, k = 2, width = 70;
        auto outputs = numbers<float>(tokens * k * width), weights = numbers<float>(tokens * k);
        std::vector<uint32_t> places = {5, 0, 1, 4, 3, 2};
        std::vector<float> out(tokens * width);
        emulated::launch({(unsigned)tokens}, 64, 0, [&] { combine(outputs.data(), places.data(), weights.data(), out.data(), k, width); });
        Comparison sums{"combined", 1e-6};
        for (int i = 0; i < tokens * width; i++) {
            double sum = 0;
            for (int j = 0; j < k; j++) sum += wide(weights[i / width * k + j]) * outputs[places[i / width * k + j] * width + i % width];
            sums.add(out[i], sum);
        }
    });
}
