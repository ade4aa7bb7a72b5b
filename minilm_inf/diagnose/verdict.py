"""What the numbers say, in words: for each factor whether this model shows it, and by what.

The rules, on means over all heads and layers:

    factor 1    shown: the running maximum of |logit| grows at least GROWS-fold from the trained
                length to the end of the text. In part: it does not, but keys further away than
                any trained distance reach logits GROWS times as large as the same keys would,
                felt at the trained length: they gain weight, though not beyond the size that
                the negative logits of other keys had already.
    factor 2    shown: from the last octave within the trained length to the last of the text
                the vanilla rows' entropy grows by at least SHARE_OF_LOG of what it would, were
                the attention uniform, which is ln of how often more keys are visible.
    factor 3    apart: in some layer the first positions stand APART and more from the rest, in
                units of its spread, and OVER_OTHERS times as far as any other stretch.
                Costly: without the starting tokens the nll behind the window is at least COST
                nats higher, and its interval lies above 0. Shown: both, or apart where the cost
                was not measured; in part: one of the two.

Where the text is no longer than the trained length, factors 1 and 2 are not measured.
"""

from __future__ import annotations

GROWS = 1.25
SHARE_OF_LOG = 0.25
APART = 1.0
OVER_OTHERS = 2.0
COST = 0.05

SHOWN, IN_PART, NOT_SHOWN, NOT_MEASURED = "shown", "in part", "not shown", "not measured"


def pick(table: list[dict], **names) -> list[dict]:
    """The rows of a table that have these values."""
    return [row for row in table if all(row[name] == value for name, value in names.items())]


def verdicts(tables: dict[str, list[dict]], facts: dict) -> dict[str, dict]:
    """For each factor: verdict, the numbers that it rests on, and a line of words.

    facts: n, context_length, n_local, n_global, distance_ceiling, has_bias.
    """
    return {
        "factor_1": factor_1(tables, facts),
        "factor_2": factor_2(tables, facts),
        "factor_3": factor_3(tables, facts),
    }


def result(verdict: str, numbers: dict, words: str) -> dict:
    return {"verdict": verdict, "numbers": numbers, "words": f"{verdict}: {words}"}


def too_short(facts: dict) -> dict:
    return result(
        NOT_MEASURED, {},
        f"the text's {facts['n']:,} tokens are not beyond the trained length of "
        f"{facts['context_length']:,}; take a larger --length",
    )  # fmt: skip


def factor_1(tables, facts) -> dict:
    if facts["n"] <= facts["context_length"]:
        return too_short(facts)
    numbers = {}
    for side in ("vanilla", "capped", "lambda"):
        rows = pick(tables["logits"], side=side, layer="all")
        numbers[f"{side}_within"] = pick(rows, last=facts["context_length"])[0]["mean"]
        numbers[side] = rows[-1]["mean"]
        far = pick(tables["beyond"], side=side, layer="all")[0]
        numbers[f"{side}_far"] = far["highest_mean"]
    far, capped = numbers["vanilla_far"], numbers["capped_far"]
    grows = numbers["vanilla"] >= GROWS * numbers["vanilla_within"] > 0
    rises = far > 0 and far >= GROWS * capped
    ours = numbers["lambda_far"]  # None where it sees no key so far away
    words = (
        f"the largest |logit| goes from {numbers['vanilla_within']:.1f} at "
        f"{facts['context_length']:,} tokens to {numbers['vanilla']:.1f} at {facts['n']:,} "
        f"(LM-Infinite {numbers['lambda']:.1f}); keys {facts['context_length']:,} and more "
        f"away reach a logit of {far:.1f} (felt at {facts['context_length']:,} the same keys "
        f"{capped:.1f}{'' if ours is None else f'; LM-Infinite {ours:.1f}'})"
    )
    if grows and not rises:
        words += ", so it grows downward only"
        words += ", as ALiBi's bias does" if facts["has_bias"] else ""
    told = pick(tables["theorem"], side="vanilla", layer="all", n=facts["n"])[0]
    numbers |= {name: told[f"{name}_mean"] for name in ("alpha", "bound", "sup")}
    words += (
        f"; since {told['alpha_mean']:.0f} distances are told apart, Theorem 1 asks for a "
        f"|logit| of {told['bound_mean']:.2f}, and its sample has {told['sup_mean']:.1f}"
    )
    return result(SHOWN if grows else IN_PART if rises else NOT_SHOWN, numbers, words)


def factor_2(tables, facts) -> dict:
    if facts["n"] <= facts["context_length"]:
        return too_short(facts)
    rows = pick(tables["entropy"], side="vanilla", layer="all")
    within = pick(rows, last=facts["context_length"])[0]
    last = rows[-1]
    flat = pick(tables["entropy"], side="lambda", layer="all")[-1]
    numbers = {
        "within": within["mean"], "beyond": last["mean"], "lambda": flat["mean"],
        "grows": last["mean"] - within["mean"],
        "uniform_would_grow": last["ln_visible"] - within["ln_visible"],
        "proposition_1": last["proposition_1"], "ln_most_visible": flat["ln_most_visible"],
    }  # fmt: skip
    shown = numbers["grows"] >= SHARE_OF_LOG * numbers["uniform_would_grow"]
    words = (
        f"the entropy of attention goes from {within['mean']:.2f} nats over "
        f"{within['visible']:,.0f} keys to {last['mean']:.2f} over {last['visible']:,.0f} "
        f"({numbers['grows']:+.2f}; uniform attention {numbers['uniform_would_grow']:+.2f}); "
        f"LM-Infinite {flat['mean']:.2f} over {flat['visible']:,.0f}"
    )
    return result(SHOWN if shown else NOT_SHOWN, numbers, words)


def factor_3(tables, facts) -> dict:
    best = max(tables["states"], key=lambda row: row["apart"])
    apart = best["apart"] >= max(APART, OVER_OTHERS * best["largest_other"])
    numbers = {
        "layer": best["layer"], "apart": best["apart"], "largest_other": best["largest_other"],
        "without_token_0": best["without_token_0"], "in_plane": best["in_plane"],
    }  # fmt: skip
    words = (
        f"after layer {best['layer']} the first positions stand {best['apart']:.2f} spreads "
        f"from the rest (other stretches at most {best['largest_other']:.2f}; without token 0 "
        f"{best['without_token_0']:.2f})"
    )
    mass = pick(tables["mass"], side="vanilla", layer="all")
    if mass:
        numbers["mass"], numbers["share"] = mass[0]["mean"], mass[0]["share"]
        words += (
            f"; {mass[0]['mean']:.1%} of the attention is on the first {mass[0]['tokens']} "
            f"tokens ({mass[0]['share']:.1%} were it uniform)"
        )
    dropped = pick(tables["nll"], reading="dropped - with")
    if not dropped:
        words += f"; what they are worth is not measured: the window holds all {facts['n']:,}"
        return result(SHOWN if apart else NOT_SHOWN, numbers, words)
    cost, interval = dropped[0]["nll"], dropped[0]["interval"]
    numbers["cost"], numbers["cost_interval"] = cost, interval
    costly = cost >= COST and (interval is None or interval[0] > 0)
    between = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
    words += f"; dropping them costs {cost:+.3f} nat{between} at n_local {facts['n_local']:,}"
    return result((NOT_SHOWN, IN_PART, SHOWN)[apart + costly], numbers, words)
