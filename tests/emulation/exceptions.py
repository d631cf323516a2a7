"""Tests that cannot hold on the emulation, each with its reason; a key is a part of the name of a test."""

ON_DEVICE: dict[str, str] = {
    "cuda-inductor": "inductor compiles for a GPU by Triton, which needs the driver",
    "test_export[cuda": "torch.export takes the sizes of a tensor subclass as constants",
    "test_compile_and_export[cuda": "torch.export takes the sizes of a tensor subclass as constants",
    "test_error_at_most_twice_that_of_pytorch[cuda": "compares with the rounding of PyTorch's CUDA kernels",
}

AS_CPU: dict[str, str] = {}
