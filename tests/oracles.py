"""Every formula once more, in float64 and in the dumbest form."""

import copy
import math
from itertools import pairwise

import torch


def dot(left, right):
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def ches(chosen_states, rejected_states):
    """<S+, S-> - |S+|^2 from the definition: a double sum over all pairs of states."""
    cross = sum(dot(a, b) for a in chosen_states for b in rejected_states)
    own = sum(dot(a, b) for a in chosen_states for b in chosen_states)
    return cross - own


def ches_normalized(chosen_states, rejected_states):
    n, m = len(chosen_states), len(rejected_states)
    cross = sum(dot(a, b) for a in chosen_states for b in rejected_states)
    own = sum(dot(a, b) for a in chosen_states for b in chosen_states)
    return cross / (n * m) - own / (n * n)


def levenshtein(left, right):
    table = [[i + j if i * j == 0 else 0 for j in range(len(right) + 1)] for i in range(len(left) + 1)]
    for i in range(1, len(left) + 1):
        for j in range(1, len(right) + 1):
            change = table[i - 1][j - 1] + (left[i - 1] != right[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, change)
    return table[-1][-1]


def response_states(model, ids, prompt_tokens):
    """States that predict the response: one unpadded sequence through the whole model in float64, head and all."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        output = exact(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[-1][0, prompt_tokens - 1 : len(ids) - 1].tolist()


def pair_scores(language_model, prompt, chosen, rejected):
    """All columns for one pair of plain text, from the text on."""
    tokenizer, eos = language_model.tokenizer, language_model.tokenizer.eos_token_id
    prompt_ids, left, right = (tokenizer(text)["input_ids"] for text in (prompt, prompt + chosen, prompt + rejected))
    border = 0
    while border < len(prompt_ids) and prompt_ids[border] == left[border] == right[border]:
        border += 1
    left, right = [*left, eos], [*right, eos]
    plus, minus = (response_states(language_model.model, ids, border) for ids in (left, right))
    tokens = (border, len(left) - border, len(right) - border)
    longest = max(tokens[1:])
    return {
        "prompt_tokens": tokens[0],
        "chosen_tokens": tokens[1],
        "rejected_tokens": tokens[2],
        "ches": ches(plus, minus),
        "ches_normalized": ches_normalized(plus, minus),
        "last_state_similarity": dot(plus[-1], minus[-1]),
        "edit_similarity": -levenshtein(left[border:], right[border:]) / longest,
    }


def token_stats(states, weight, target, bias=None, scale=1.0, soft_cap=None):
    """(logprob, rank, entropy) of one target from the definition, in Python numbers."""
    logits = []
    for column, row in enumerate(weight):
        value = (dot(states, row) + (0.0 if bias is None else float(bias[column]))) * scale
        logits.append(soft_cap * math.tanh(value / soft_cap) if soft_cap else value)
    largest = max(logits)
    total = math.fsum(math.exp(value - largest) for value in logits)
    probabilities = [math.exp(value - largest) / total for value in logits]
    entropy = -math.fsum(p * math.log(p) for p in probabilities if p > 0)
    rank = 1 + sum(value > logits[target] for index, value in enumerate(logits) if index != target)
    return logits[target] - largest - math.log(total), rank, entropy


def response_likelihood(model, ids, prompt_tokens):
    """Log-probability and rank of each response token: the whole model in float64, log_softmax, a loop."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = exact(input_ids=torch.tensor([ids])).logits[0]
    logprobs, ranks = [], []
    for position in range(prompt_tokens, len(ids)):
        row = logits[position - 1]
        logprobs.append(float(torch.log_softmax(row, dim=-1)[ids[position]]))
        ranks.append(1 + sum(float(value) > float(row[ids[position]]) for value in row))
    return logprobs, ranks


def spearman(left, right):
    """Pearson's correlation of mean ranks, from the definition."""

    def ranks(values):
        return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]

    a, b = ranks(left), ranks(right)
    means = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - means[0]) * (y - means[1]) for x, y in zip(a, b, strict=True))
    spread = [sum((x - mean) ** 2 for x in side) for side, mean in zip((a, b), means, strict=True)]
    return covariance / math.sqrt(spread[0] * spread[1])


def distance(left, right):
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(left, right, strict=True)))


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def clusters_of(points, labels):
    return {
        name: [list(map(float, p)) for p, own in zip(points, labels, strict=True) if own == name] for name in labels
    }


def dunn(points, labels):
    """Every pair of points looked at."""
    pairs = [(i, j) for i in range(len(points)) for j in range(i)]
    apart = [distance(points[i], points[j]) for i, j in pairs if labels[i] != labels[j]]
    within = [distance(points[i], points[j]) for i, j in pairs if labels[i] == labels[j]]
    return min(apart) / max(within)


def dunn_centroid(points, labels):
    centers = [mean_of(rows) for rows in clusters_of(points, labels).values()]
    within = [distance(p, q) for rows in clusters_of(points, labels).values() for p in rows for q in rows]
    return min(distance(p, q) for i, p in enumerate(centers) for q in centers[:i]) / max(within)


def davies_bouldin(points, labels):
    clusters = list(clusters_of(points, labels).values())
    centers = [mean_of(rows) for rows in clusters]
    spreads = [sum(distance(p, c) for p in rows) / len(rows) for rows, c in zip(clusters, centers, strict=True)]
    numbers = range(len(clusters))
    worst = [
        max((spreads[i] + spreads[j]) / distance(centers[i], centers[j]) for j in numbers if j != i) for i in numbers
    ]
    return sum(worst) / len(clusters)


def welch(points, labels):
    """Of every pair of clusters: the squared distance of centroids over the squares of their standard errors."""
    clusters = list(clusters_of(points, labels).values())
    centers = [mean_of(rows) for rows in clusters]
    errors = [
        sum(distance(p, c) ** 2 for p in rows) / max(len(rows) - 1, 1) / len(rows)
        for rows, c in zip(clusters, centers, strict=True)
    ]
    numbers = range(len(clusters))
    found = [distance(centers[i], centers[j]) ** 2 / (errors[i] + errors[j]) for i in numbers for j in range(i)]
    return sum(found) / len(found)


def squares_within(points, labels):
    clusters = clusters_of(points, labels).values()
    return sum(distance(p, mean_of(rows)) ** 2 for rows in clusters for p in rows)


def calinski_harabasz(points, labels):
    clusters = list(clusters_of(points, labels).values())
    center = mean_of([list(map(float, p)) for p in points])
    between = sum(len(rows) * distance(mean_of(rows), center) ** 2 for rows in clusters)
    k, n = len(clusters), len(points)
    return between / (k - 1) / (squares_within(points, labels) / (n - k))


def xie_beni(points, labels):
    centers = [mean_of(rows) for rows in clusters_of(points, labels).values()]
    least = min(distance(p, q) ** 2 for i, p in enumerate(centers) for q in centers[:i])
    return squares_within(points, labels) / (len(points) * least)


def silhouette(points, labels, weights=None):
    """With weights, points count several times, and are no neighbours of their own copies."""
    weights = [1] * len(points) if weights is None else weights
    names, total = sorted(set(labels)), 0.0
    for i, point in enumerate(points):
        means = {}
        for name in names:
            others = [j for j in range(len(points)) if labels[j] == name and j != i]
            count = sum(weights[j] for j in others)
            summed = sum(weights[j] * distance(point, points[j]) for j in others)
            means[name] = summed / count if count else None
        own = means.pop(labels[i])
        near = min(value for value in means.values() if value is not None)
        if own is not None and max(own, near) > 0:
            total += weights[i] * (near - own) / max(own, near)
    return total / sum(weights)


def linear_cka(left, right):
    """tr(KHLH) / sqrt(tr(KHKH) tr(LHLH)) with n x n matrices, as printed."""
    rows = len(left)
    centring = torch.eye(rows, dtype=torch.float64) - torch.ones(rows, rows, dtype=torch.float64) / rows
    kernels = [centring @ (side.double() @ side.double().T) @ centring for side in (left, right)]
    products = [[float((a @ b).trace()) for b in kernels] for a in kernels]
    return products[0][1] / math.sqrt(products[0][0] * products[1][1])


def debiased_linear_cka(left, right):
    """The same with HSIC_1 of Song et al. 2012, equation 5, from uncentred kernels without their diagonals."""
    rows = len(left)
    ones = torch.ones(rows, dtype=torch.float64)
    kernels = [(side.double() @ side.double().T).fill_diagonal_(0) for side in (left, right)]

    def hsic(a, b):
        apart = float(ones @ a @ ones) * float(ones @ b @ ones) / ((rows - 1) * (rows - 2))
        return (float((a @ b).trace()) + apart - 2 / (rows - 2) * float(ones @ a @ b @ ones)) / (rows * (rows - 3))

    products = [[hsic(a, b) for b in kernels] for a in kernels]
    return products[0][1] / math.sqrt(products[0][0] * products[1][1])


def simplex_grid(layers, parts):
    """Every weighting whose entries are multiples of 1 / parts."""

    def compositions(length, total):
        if length == 1:
            yield (total,)
            return
        for first in range(total + 1):
            yield from ((first, *rest) for rest in compositions(length - 1, total - first))

    return [[part / parts for part in composition] for composition in compositions(layers, parts)]


def difference_grams(layers, pairs):
    """<h_l[a] - h_l[b], h_m[a] - h_m[b]> / (s_l s_m), and s_l, with loops and Python numbers."""
    differences = [
        [[float(x) - float(y) for x, y in zip(states[a], states[b], strict=True)] for a, b in pairs]
        for states in layers
    ]
    scales = [math.sqrt(sum(dot(d, d) for d in layer) / len(pairs)) for layer in differences]
    grams = [
        [
            [dot(one[p], other[p]) / (s * t) for other, t in zip(differences, scales, strict=True)]
            for one, s in zip(differences, scales, strict=True)
        ]
        for p in range(len(pairs))
    ]
    return grams, scales


def separation_loss(weights, grams, same, margin):
    """Mean of d^2 over pairs of one label and of max(0, margin - d)^2 over pairs of two, together."""
    layers = range(len(weights))
    total = 0.0
    for gram, one_label in zip(grams, same, strict=True):
        square = sum(float(weights[i]) * float(gram[i][j]) * float(weights[j]) for i in layers for j in layers)
        total += square if one_label else max(0.0, margin - math.sqrt(max(square, 0.0))) ** 2
    return total / len(grams)


def pair_distances(points, bounds, block):
    """Of one layer: sums of distances [n cluster], and of each tile (squared distance, row, column)."""
    squared = [
        [math.fsum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)) for y in points] for x in points
    ]
    sums = [[math.fsum(math.sqrt(value) for value in row[a:b]) for a, b in pairwise(bounds)] for row in squared]
    blocks = [
        (label, range(start, min(start + block, stop)))
        for label, (first, stop) in enumerate(pairwise(bounds))
        for start in range(first, stop, block)
    ]
    extremes = []
    for index, (label, rows) in enumerate(blocks):
        for other, columns in blocks[index:]:
            pairs = [(row, column) for row in rows for column in columns if row != column] or [(rows[0], rows[0])]
            # Of equal ones, Python's max and min return the first.
            row, column = (max if label == other else min)(pairs, key=lambda pair: squared[pair[0]][pair[1]])
            extremes.append((squared[row][column], row, column))
    return sums, extremes
