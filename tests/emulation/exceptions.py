"""Tests that cannot hold on the emulation, each with its reason; a key is a part of the name of a test."""

_SIZES_ARE_CONSTANT = "torch.export takes the sizes of a tensor subclass as constants"

ON_DEVICE: dict[str, str] = {
    "cuda-inductor": "inductor compiles for a GPU by Triton, which needs the driver",
    "test_export[cuda": _SIZES_ARE_CONSTANT,
    "test_compile_and_export[cuda": _SIZES_ARE_CONSTANT,
    "test_error_at_most_twice_that_of_pytorch[cuda": "compares with the rounding of PyTorch's CUDA kernels",
}

_MARKED = "the CUDA op marks such values in its result: to raise an error, the host would have to wait"

AS_CPU: dict[str, str] = {
    "test_augment_images.py::test_the_op_reads_nothing_out_of_range": _MARKED,
    "test_class_l1_nearest.py::test_the_op_itself_reads_nothing_out_of_range": _MARKED,
    "test_mahalanobis_logits.py::test_a_bad_diagonal_is_refused": _MARKED,
    "RuntimeError-id_keys must ascend in each row": _MARKED,
    "test_losses.py::test_bad_input[change0-ValueError-^targets must be below K": _MARKED,
    "test_raw_ops.py::test_a_descent_out_of_the_pool_is_an_error": _MARKED,
    "test_raw_ops.py::test_uniforms_are_in_their_range": _MARKED,
    "test_raw_ops.py::test_messages_name_the_file_without": "the emulated build keeps the paths of its sources",
}
