"""Triton's interpreter as the tests need it: one mistake of it mended, and work that nothing here looks at left out."""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np

os.environ["TRITON_INTERPRET"] = "1"  # Triton decides as it is imported

try:
    from triton.language import core, int1
    from triton.runtime import interpreter
except ImportError:  # then tests of kernels are skipped
    interpreter = None


def mend_masks():
    """The interpreter takes the comparison of two scalars for an int32; Triton 3.9 refuses masks made of it."""
    splat = interpreter.InterpreterBuilder.create_splat

    def create_splat(self, block, scalar):
        is_mask = scalar.data.dtype == np.bool_
        return splat(self, block, interpreter.TensorHandle(scalar.data, int1) if is_mask else scalar)

    interpreter.InterpreterBuilder.create_splat = create_splat


def patch_once_a_launch():
    """The interpreter patches Triton's language again at every call of a device function."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched = set()

    def patch_once(function):
        module = id(function.__globals__)
        if module in patched:
            return None  # only a launch looks at it
        patched.add(module)
        return patch(function)

    def launch_anew(self, *arguments, **named):
        patched.clear()
        return launch(self, *arguments, **named)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_anew


def leave_overflow_unchecked():
    """The interpreter computes whether integers overflow, and does not look at the result."""
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def remember_types():
    """The interpreter works out the dtype, the shape and the type of a block anew for the result of every operation."""
    dtype_of, type_init, tensor_init = interpreter._get_np_dtype, core.block_type.__init__, core.tensor.__init__
    dtype_of_scalar = functools.cache(dtype_of)
    types, shapes = {}, {}  # by the identity of what their values keep alive

    def init_type(self, element_ty, shape):
        key = id(element_ty), *shape
        if key in types:
            vars(self).update(types[key])
        else:
            type_init(self, element_ty, shape)
            types[key] = dict(vars(self))

    def init_tensor(self, handle, type):
        shape = type.shape if type.is_block() else None
        if id(shape) in shapes:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            _, self.shape, self.numel = shapes[id(shape)]
        else:
            tensor_init(self, handle, type)
            shapes[id(shape)] = shape, self.shape, self.numel

    interpreter._get_np_dtype = lambda type: dtype_of(type) if type.scalar.is_ptr() else dtype_of_scalar(type.scalar)
    core.block_type.__init__, core.tensor.__init__ = init_type, init_tensor


if interpreter is not None:
    mend_masks()
    patch_once_a_launch()
    leave_overflow_unchecked()
    remember_types()
