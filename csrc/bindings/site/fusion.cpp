#include "bindings/site/fusion.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/max_pool2d.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "bindings/function.h"
#include "bindings/site/weights.h"
#include "ops/conv/conv.h"
#include "ops/linear/linear.h"

namespace fastact::site {

namespace {

// Whether a transform of torch.func is at work.
bool is_transformed() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

}  // namespace

bool Fusion::needs_grad() const {
  return c10::GradMode::is_enabled() &&
         (value().requires_grad() || weight().requires_grad() || (bias && bias->requires_grad()) ||
          (residual && residual->requires_grad()) ||
          (epilogue && epilogue->slope && epilogue->slope->requires_grad()));
}

Look Fusion::take_layer(PyObject* layer, PyObject* value_item, bool may_pack) {
  Tables& t = tables();
  const auto found = t.layers.find(Py_TYPE(layer));
  if (found == t.layers.end()) {
    return Look::kNo;
  }
  LayerKind& row = found->second;
  const Names& n = names();
  const Object own = instance_dict(layer);
  if (!own || !is_as_born(Py_TYPE(layer), row.born) || !is_undisturbed(own.ptr()) ||
      !row.called.is_untouched() || has(own.ptr(), n.weight) || has(own.ptr(), n.bias) ||
      (row.born.helper && has(own.ptr(), row.born.helper_name)) || !is_plain(value_item)) {
    return Look::kNo;
  }
  if (row.has_own_activation) {
    PyObject* const fused = item(own.ptr(), n.fused);
    if (!fused) {
      return Look::kNo;
    }
    const auto get = [&](const Object& name) {
      return pybind11::reinterpret_steal<Object>(PyObject_GetAttr(fused, name.ptr()));
    };
    const Object name = get(n.name), is_module = get(n.is_module);
    if (!name || !name.is_none() || is_module.ptr() != Py_False) {
      PyErr_Clear();
      return Look::kPython;
    }
  }
  PyObject* const parameters = item(own.ptr(), n.parameters);
  if (!parameters || !PyDict_Check(parameters)) {
    return Look::kNo;
  }
  PyObject* const weight_item = item(parameters, n.weight);
  PyObject* const bias_item = item(parameters, n.bias);
  if (!weight_item || !bias_item || !is_plain(weight_item) ||
      !(bias_item == Py_None || is_plain(bias_item))) {
    return Look::kNo;
  }
  weight_object = pybind11::reinterpret_borrow<Object>(weight_item);
  if (weight().layout() != at::kStrided) {
    return Look::kNo;
  }
  if (bias_item != Py_None) {
    bias = THPVariable_Unpack(bias_item);
  }
  input = &THPVariable_Unpack(value_item);
  frozen = may_pack;
  kind = &row;
  if (!row.dims) {
    return Look::kYes;
  }
  if (!has_sizes(value()) || !has_sizes(weight()) || value().dim() != row.dims + 2 ||
      weight().dim() != row.dims + 2 || !lies_as_pytorchs(value(), weight())) {
    return Look::kNo;
  }
  return read_geometry(own.ptr(), row.dims, geometry);
}

Look Fusion::take_norm(PyObject* module, NormKind& row) {
  const Names& n = names();
  const Object own = instance_dict(module);
  const int64_t dims = kind->dims + 2;
  if (!frozen || has_links || epilogue || pool || !own || Py_TYPE(module) != kind->norm ||
      !is_as_born(Py_TYPE(module), row.born) || !is_undisturbed(own.ptr()) ||
      !row.called.is_untouched() || item(own.ptr(), n.training) != Py_False ||
      value().dim() != dims || needs_grad() || at::autocast::is_autocast_enabled(at::kCPU) ||
      weight().dim() != dims ||
      !(weight().scalar_type() == at::kFloat || weight().scalar_type() == at::kDouble)) {
    return Look::kNo;
  }
  for (PyObject* tensor : norm_tensors(own.ptr())) {
    if (!tensor || (tensor != Py_None && !is_plain(tensor))) {
      return Look::kNo;
    }
    if (tensor != Py_None) {
      const Tensor& t = THPVariable_Unpack(tensor);
      if (t.dim() != 1 || t.sym_size(0) != weight().sym_size(0) ||
          t.scalar_type() != weight().scalar_type() ||
          (c10::GradMode::is_enabled() && t.requires_grad())) {
        return Look::kNo;
      }
    }
  }
  const auto tensors = norm_tensors(own.ptr());
  if (tensors[0] == Py_None || tensors[1] == Py_None) {
    return Look::kNo;
  }
  norm = pybind11::reinterpret_borrow<Object>(module);
  has_links = true;
  return Look::kYes;
}

Look Fusion::take_residual(PyObject* other, bool first) {
  if (residual || epilogue || pool || !is_plain(other)) {
    return Look::kNo;
  }
  const Tensor& tensor = THPVariable_Unpack(other);
  const Tensor &value = *input, &weight = this->weight();
  if (tensor.layout() != at::kStrided || tensor.is_nested() || value.is_nested() ||
      tensor.scalar_type() != value.scalar_type() || tensor.scalar_type() != weight.scalar_type() ||
      value.dim() == 0 || weight.dim() == 0 || tensor.dim() != value.dim() ||
      at::autocast::is_autocast_enabled(at::kCPU)) {
    return Look::kNo;
  }
  if (kind->dims) {
    if (!fits_result(tensor, value, weight, geometry)) {
      return Look::kNo;
    }
  } else if (tensor.sym_sizes().slice(0, value.dim() - 1) !=
                 value.sym_sizes().slice(0, value.dim() - 1) ||
             tensor.sym_size(-1) != weight.sym_size(0) ||
             // The first operand decides the strides of a sum.
             (first && !tensor.is_contiguous())) {
    return Look::kNo;
  }
  residual = tensor;
  has_links = true;
  return Look::kYes;
}

bool Fusion::may_turn() const {
  return frozen && kind->dims == 2 && !needs_grad() && weight().is_cpu() &&
         !weight().is_inference() && !at::autocast::is_autocast_enabled(at::kCPU) &&
         !is_transformed() &&
         (is_turned || conv_memory_format(value(), weight()) == at::MemoryFormat::Contiguous);
}

Look Fusion::take_pool(const Pool& found) {
  if (!may_turn()) {
    return Look::kNo;
  }
  pool = found;
  has_links = true;
  return Look::kYes;
}

Look Fusion::take(Found&& found) {
  if (pool) {
    return Look::kNo;
  }
  if (found.pool) {
    return take_pool(*found.pool);
  }
  if (found.get().idle) {
    has_links = true;
    return Look::kYes;
  }
  if (epilogue) {
    return Look::kNo;
  }
  if (!found.row) {
    made = std::move(found.read);
  }
  const Epilogue& one = found.row ? *found.row : made;
  if (kind->dims && tables().along_dimension.count(one.name)) {
    return Look::kNo;  // the result may have other strides than PyTorch's
  }
  epilogue = &one;
  if (one.in_place && tables().keeps_result.count(one.name) == 0 && needs_grad()) {
    epilogue = nullptr;
    return Look::kNo;
  }
  return Look::kYes;
}

Tensor Fusion::run(bool saves_output, bool stays_turned) const {
  static const auto* const none = new Epilogue;
  const Epilogue& after = epilogue ? *epilogue : *none;
  const bool turns = pool || stays_turned || is_turned;
  const Tensor value = turns ? input->contiguous(at::MemoryFormat::ChannelsLast) : *input;
  const Tensor& weight = this->weight();
  ActivationName activation;
  if (epilogue) {
    activation = c10::string_view(after.name);
  }
  const bool grad = needs_grad();
  const auto call = [&](const auto& f) {
    if (!weight.is_nested() && (weight.nbytes() >= kReleaseGilBytes ||
                                (kind->dims && value.nbytes() >= kReleaseGilBytes))) {
      pybind11::gil_scoped_release release;
      return f();
    }
    return f();
  };
  const bool transformed = is_transformed();
  const auto moves = [&](const auto& f) {
    return f(c10::fromIntArrayRefSlow(geometry.stride), c10::fromIntArrayRefSlow(geometry.padding),
             c10::fromIntArrayRefSlow(geometry.dilation), c10::SymInt(geometry.groups));
  };
  const auto run_packed = [&](const Tensor& packed, const Tensor& w, const OptionalTensor& b) {
    return call([&] {
      if (!kind->dims) {
        return linear_packed_op.call(value, packed, w, b, activation, after.parameters, after.slope,
                                     residual);
      }
      Tensor result = moves([&](auto... numbers) {
        return conv_packed_op.call(value, packed, w, b, numbers..., activation, after.parameters,
                                   after.slope, residual, geometry.winograd);
      });
      if (pool) {
        result = at::max_pool2d(result, pool->kernel, pool->stride, pool->padding, pool->dilation,
                                pool->ceil_mode);
      }
      return turns && !stays_turned ? turned_back(result) : result;
    });
  };
  if (norm) {
    const Folded* const kept =
        grad || transformed || !weight.is_cpu()
            ? nullptr
            : folded_of(*kind, geometry, weight_object.ptr(), bias, norm.ptr());
    if (!kept) {
      throw AskPython();
    }
    // Copied, as other threads may drop them while this one runs.
    const Tensor with_norm = kept->weight, packed = kept->packed;
    const OptionalTensor bias_with_norm = kept->bias;
    return run_packed(packed, with_norm, bias_with_norm);
  }
  if (frozen && !grad && !transformed && weight.is_cpu() && !weight.is_inference()) {
    return run_packed(packed_of(*kind, geometry, weight_object.ptr()), weight, bias);
  }
  if (frozen && (weight.is_inference() || transformed)) {
    throw AskPython();
  }
  const bool keeps = saves_output || !epilogue || tables().keeps_result.count(after.name);
  return call([&] {
    return kind->dims ? moves([&](auto... numbers) {
      return conv_op.call(value, weight, bias, numbers..., activation, after.parameters,
                          after.slope, residual, keeps);
    })
                      : linear_op.call(value, weight, bias, activation, after.parameters,
                                       after.slope, residual, keeps);
  });
}

std::optional<Tensor> try_run(const Fusion& fusion, bool saves_output, bool stays_turned) {
  try {
    return fusion.run(saves_output, stays_turned);
  } catch (const c10::Error&) {
    if (at::SavedTensorDefaultHooks::is_enabled() &&
        at::SavedTensorDefaultHooks::get_hooks(true).has_value()) {
      throw;
    }
    return std::nullopt;
  }
}

}  // namespace fastact::site
