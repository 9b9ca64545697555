"""An environment may have imported numba before vLLM starts, which reads what every module holds."""

from __future__ import annotations

from actors.engines.vllm_common import keep_llvmlite_apart


def test_llvmlites_library_has_no_dict_any_more_and_its_functions_still(monkeypatch):
    import llvmlite.binding.ffi as ffi

    found = ffi._lib_wrapper.__getattr__
    monkeypatch.setattr(ffi._lib_wrapper, "__getattr__", found)  # put back in the end
    assert hasattr(ffi.lib, "__dict__") or found.__module__ != ffi.__name__, "what vLLM stumbles over"
    for _ in range(2):
        keep_llvmlite_apart()
        assert not hasattr(ffi.lib, "__dict__") and callable(ffi.lib.LLVMPY_GetVersionInfo)
