#include "bindings/site/tables.h"

namespace fastact::site {

namespace {

Called called_from(pybind11::handle triple) {
  Called made;
  if (!triple.is_none()) {
    const auto parts = triple.cast<pybind11::tuple>();
    made = {parts[0], parts[1], parts[2]};
  }
  return made;
}

}  // namespace

void set_up(const pybind11::dict& given) {
  Tables& t = tables();
  t.module_type = reinterpret_cast<PyTypeObject*>(Object(given["module"]).release().ptr());
  t.module_call = given["call"];
  t.call_impl = given["call_impl"];
  t.wrapped_call_impl = given["wrapped_call_impl"];
  t.module_getattr = given["getattr"];
  t.object_getattribute = given["getattribute"];
  t.sequential_iter = given["sequential_iter"];
  for (const auto hooks : given["global_hooks"]) {
    t.global_hooks.push_back(pybind11::reinterpret_borrow<Object>(hooks));
  }
  const auto type_of = [](pybind11::handle type) {
    return reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  };
  for (const auto one : given["layers"]) {
    const auto row = one.cast<pybind11::tuple>();
    LayerKind kind;
    kind.born.forward = row[1];
    if (!row[2].is_none()) {
      const auto helper = row[2].cast<pybind11::tuple>();
      kind.born.helper_name = helper[0];
      kind.born.helper = helper[1];
    }
    kind.called = called_from(row[3]);
    kind.has_own_activation = row[4].cast<bool>();
    kind.function = row[5];
    kind.dims = row[6].cast<int64_t>();
    kind.norm = type_of(row[7]);
    t.layers[type_of(row[0])] = kind;
  }
  for (const auto one : given["activations"]) {
    const auto row = one.cast<pybind11::tuple>();
    ActivationKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    kind.name = row[3].cast<std::string>();
    for (const auto name : row[4]) {
      kind.attributes.push_back(pybind11::reinterpret_borrow<Object>(name));
    }
    kind.constants = row[5].cast<std::vector<double>>();
    if (!row[6].is_none()) {
      const auto variant = row[6].cast<pybind11::tuple>();
      kind.variant = variant[0];
      for (const auto& [value, name] : variant[1].cast<pybind11::dict>()) {
        kind.variants.emplace_back(pybind11::reinterpret_borrow<Object>(value),
                                   name.cast<std::string>());
      }
    }
    kind.has_slope = row[7].cast<bool>();
    kind.takes_dim = row[8].cast<bool>();
    t.activations[type_of(row[0])] = kind;
  }
  for (const auto one : given["idle"]) {
    const auto row = one.cast<pybind11::tuple>();
    IdleKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    kind.is_dropout = row[3].cast<bool>();
    t.idle[type_of(row[0])] = kind;
  }
  for (const auto one : given["norms"]) {
    const auto row = one.cast<pybind11::tuple>();
    NormKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    t.norms[type_of(row[0])] = kind;
  }
  for (const auto one : given["pools"]) {
    const auto row = one.cast<pybind11::tuple>();
    PoolKind kind;
    kind.born.forward = row[1];
    kind.called = called_from(row[2]);
    t.pools[type_of(row[0])] = kind;
  }
  for (const auto one : given["functions"]) {
    const auto row = one.cast<pybind11::tuple>();
    Epilogue epilogue;
    epilogue.name = row[1].cast<std::string>();
    for (const auto number : row[2].cast<pybind11::tuple>()) {
      epilogue.parameters.push_back(number.cast<double>());
    }
    epilogue.in_place = row[3].cast<bool>();
    t.functions[Object(row[0]).release().ptr()] = epilogue;
  }
  for (const auto& [name, method] : given["methods"].cast<pybind11::dict>()) {
    t.methods[name.cast<std::string>()] = pybind11::reinterpret_borrow<Object>(method);
  }
  for (const auto function : given["sums"]) {
    t.sums.insert(function.inc_ref().ptr());
  }
  for (const auto name : given["keeps_result"]) {
    t.keeps_result.insert(name.cast<std::string>());
  }
  for (const auto name : given["along_dimension"]) {
    t.along_dimension.insert(name.cast<std::string>());
  }
  t.asks_python = given["asks_python"];
  t.classify = given["classify"];
  t.pack = given["pack"];
  t.fold = given["fold"];
  t.run_sequence = given["run_sequence"];
}

}  // namespace fastact::site
