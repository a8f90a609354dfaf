"""Triton's interpreter without what it does again and again: a third of its time."""

import os
from functools import cache

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    # These are parts of Triton's own. A version that has them no more is as slow as it is, and nothing else changes.
    whole_patch = getattr(interpreter, "_patch_lang", None)
    new_scope = getattr(interpreter, "_LangPatchScope", None)
    numpy_type = getattr(interpreter, "_get_np_dtype", None)

    def patch_once(function):
        """Replace the language by the interpreter's, unless the kernel that calls this function has done so.

        Triton does it anew for each call of a function within a kernel. There it looks through all names of the
        language for some to replace, and finds none.
        """
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if languages and not any(tl.core.is_builtin(language.load) for language in languages):
            return new_scope()
        return whole_patch(function)

    @cache
    def scalar_type(dtype):
        return numpy_type(dtype)

    def quick_type(dtype):
        """NumPy's type for one of Triton's; Triton makes a new table of all types whenever it is asked."""
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return scalar_type(element) if type(element) is tl.dtype else numpy_type(dtype)

    if whole_patch and new_scope:
        interpreter._patch_lang = patch_once
    if numpy_type:
        interpreter._get_np_dtype = quick_type
