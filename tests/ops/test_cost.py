"""The choice of a path: what it may take, and what it prefers at the ends."""

import itertools
from dataclasses import replace

import pytest
import torch

from randlora_core.ops import cost
from randlora_core.ops.cost import Problem, StepPaths


def problem(**changes) -> Problem:
    values = {
        "tokens": 4096,
        "out_features": 768,
        "in_features": 768,
        "inner": 768,
        "dtype": torch.float32,
        "device_type": "cpu",
        "may_sum": True,
        "input_grad": True,
        "vector_grad": True,
    }
    return Problem(**(values | changes))


@pytest.mark.parametrize("path", ["auto", "weight", "two_products", "activation"])
def test_the_sum_is_never_taken_where_it_may_not(path):
    for paths in cost.allowed(problem(may_sum=False), path):
        assert cost.SUMMED not in (paths.output, paths.input_grad)


def test_forced_paths():
    assert cost.choose(problem(tokens=1), "weight") == StepPaths("summed", "summed", "weight")
    assert cost.choose(problem(tokens=1), "two_products") == StepPaths("two_products", "two_products", "weight")
    assert cost.choose(problem(tokens=1, may_sum=False), "weight") == StepPaths(
        "two_products", "two_products", "weight"
    )
    assert cost.choose(problem(tokens=10**6), "activation") == StepPaths("activation", "activation", "activation")


@pytest.mark.parametrize("shape", [(768, 768), (3072, 768), (768, 3072), (1024, 4096)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_many_tokens_go_by_the_weight_and_few_by_activations(shape, device):
    sizes = {"out_features": shape[0], "in_features": shape[1], "inner": min(shape), "device_type": device}
    assert cost.choose(problem(tokens=64 * max(shape), **sizes)) == StepPaths("summed", "summed", "weight")
    few = cost.choose(problem(tokens=16, **sizes))
    assert (few.output, few.input_grad) == ("activation", "activation")


def test_the_choice_turns_once_with_the_tokens():
    """More tokens never turn a part back to activations."""
    for half, shape in itertools.product((False, True), ((768, 768), (3072, 768), (768, 3072))):
        outputs = [
            cost.choose(
                problem(
                    tokens=tokens,
                    out_features=shape[0],
                    in_features=shape[1],
                    dtype=torch.bfloat16 if half else torch.float32,
                    may_sum=not half,
                )
            ).output
            for tokens in (2**k for k in range(4, 20))
        ]
        turned = [output != "activation" for output in outputs]
        assert turned == sorted(turned)


def test_a_lower_rank_than_full_prefers_activations_for_longer():
    tokens = next(t for t in range(8, 10**5, 8) if cost.choose(problem(tokens=t)).output == "summed")
    assert cost.choose(problem(tokens=tokens, inner=32)).output == "activation"


def test_groups_divide_the_products_and_prefer_activations_for_longer():
    """Products with k in them cost 1 / g; the summed weight gains less, since it writes as many elements.

    With many tokens the weight is still summed, and only the gradient of the vectors stays by activations.
    """
    tokens = next(t for t in range(8, 10**5, 8) if cost.choose(problem(tokens=t)).output == "summed")
    assert cost.choose(problem(tokens=tokens, groups=6)).output == "activation"
    for shape in ((768, 768), (3072, 768), (768, 3072)):
        sizes = {"out_features": shape[0], "in_features": shape[1], "groups": 6}
        assert cost.choose(problem(tokens=10**5, **sizes)) == StepPaths("summed", "summed", "activation")
        assert cost.choose(problem(tokens=64, **sizes)) == StepPaths("activation", "activation", "activation")
    whole = StepPaths("activation", "activation", "activation")
    products = 5 * 10**5 * 768 * 768  # of a square layer; the rest is what is written
    dense, blocks = (cost.estimate(problem(tokens=10**5, groups=groups), whole) for groups in (1, 6))
    assert dense - products > 0 and blocks - products / 6 > dense - products  # blocks are sorted, besides
    assert blocks < dense / 2


def test_on_cuda_a_weight_summed_group_by_group_pays_for_its_launches(monkeypatch):
    few = problem(tokens=6144, groups=8, device_type="cuda")
    assert cost.choose(few).output == "activation"
    assert cost.choose(problem(tokens=6144, groups=8)).output == "summed"  # a CPU launches nothing
    assert cost.choose(problem(tokens=6144, device_type="cuda")).output == "summed"  # dense bases take one product
    assert cost.choose(problem(tokens=10**6, groups=8, device_type="cuda")).output == "summed"

    def estimates(case: Problem) -> list[float]:
        return [cost.estimate(case, paths) for paths in cost.allowed(case)]

    dense, rates = problem(device_type="cuda"), cost.RATES["cuda", False]
    before = estimates(few), estimates(dense)
    monkeypatch.setitem(cost.RATES, ("cuda", False), replace(rates, launch=0.0))
    parts = [(paths.output, paths.input_grad).count("summed") for paths in cost.allowed(few)]
    launches = [more - less for more, less in zip(before[0], estimates(few), strict=True)]
    assert launches == pytest.approx([8 * rates.launch * number for number in parts])
    assert estimates(dense) == before[1]


def test_a_kept_product_with_b_is_not_counted_again():
    """T k D less where the vectors' gradient finds the product of the larger side with B: out < in in the output."""
    for sizes, part in (((768, 3072), "output"), ((3072, 768), "input_grad")):
        case = problem(tokens=384, out_features=sizes[0], in_features=sizes[1])
        whole = {"output": "activation", "input_grad": "activation", "vector_grad": "activation"}
        costs = {
            way: cost.estimate(case, StepPaths(**whole | {"vector_grad": way})) for way in ("activation", "weight")
        }
        without = {
            way: cost.estimate(case, StepPaths(**whole | {part: "summed", "vector_grad": way}))
            for way in ("activation", "weight")
        }
        product = 384 * 768 * 3072 + cost.RATES["cpu", False].element * 384 * 768
        saved = (without["activation"] - without["weight"]) - (costs["activation"] - costs["weight"])
        assert saved == pytest.approx(product)
        assert cost.choose(case).vector_grad == "activation"


def test_float16_goes_by_activations_only_if_told_to():
    few = problem(tokens=4, dtype=torch.float16, may_sum=False)
    assert cost.choose(few).output == "two_products"
    assert cost.choose(few, "activation").output == "activation"


def test_the_choice_is_the_cheapest_combination():
    for tokens in (16, 300, 1000, 20000):
        case = problem(tokens=tokens)
        costs = {paths: cost.estimate(case, paths) for paths in cost.allowed(case)}
        assert len(costs) == 8
        assert costs[cost.choose(case)] == min(costs.values())


def test_without_gradients_only_the_output_counts():
    case = problem(tokens=300, input_grad=False, vector_grad=False)
    assert len({cost.estimate(case, paths) for paths in cost.allowed(case)}) == 2
