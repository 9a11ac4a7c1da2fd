import pytest
import torch

from randlora_core.experiment.loop.memory import is_out_of_memory, memory_advice


def failing_allocation():
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_of_memory_is_known(error):
    assert is_out_of_memory(error)


def test_what_the_cpu_allocator_says_is_known():
    with pytest.raises(RuntimeError) as caught:
        failing_allocation()
    assert is_out_of_memory(caught.value)
    text = r"^out of memory: .*DefaultCPUAllocator: can't allocate memory"
    with pytest.raises(MemoryError, match=text) as caught, memory_advice(32, 1, 256):
        failing_allocation()
    assert isinstance(caught.value.__cause__, RuntimeError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch_size", "accumulate", "advice"), [(32, 1, 2), (32, 4, 8), (15, 1, 3), (15, 5, 15)])
def test_the_advice_names_the_next_setting_that_is_accepted(batch_size, accumulate, advice):
    with pytest.raises(MemoryError) as caught, memory_advice(batch_size, accumulate, 256):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
    assert str(caught.value) == (
        "out of memory: CUDA out of memory.; "
        f"training needs less with training.accumulate={advice} (now {accumulate}): "
        f"micro-batches are of {batch_size // accumulate} examples; "
        "evaluation with a smaller evaluate.batch_size (now 256)"
    )


def test_micro_batches_of_one_example_cannot_be_smaller():
    text = "needs less with a smaller backbone: micro-batches are of 1 examples"
    with pytest.raises(MemoryError, match=text), memory_advice(8, 8, 256):
        raise MemoryError


def test_other_errors_are_left_alone():
    error = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as caught, memory_advice(8, 1, 256):
        raise error
    assert caught.value is error
