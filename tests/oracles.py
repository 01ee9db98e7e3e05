"""Every formula once more, in float64 and in the dumbest form."""

import copy

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
