// Recurrent layers on the CPU: tensors in, the rows of cpu/recurrent's engine out.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/lstm.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/recurrent/recurrent.h"
#include "cpu/tensors.h"
#include "ops/recurrent/recurrent.h"

namespace fastact {
namespace {

RecurrentCell cell_of(RecurrentMode mode) {
  switch (mode) {
    case RecurrentMode::kTanh:
      return kTanhCell;
    case RecurrentMode::kRelu:
      return kReluCell;
    case RecurrentMode::kGru:
      return kGruCell;
    case RecurrentMode::kLstm:
      return kLstmCell;
  }
  TORCH_INTERNAL_ASSERT(false);
}

// Whether the engine computes such numbers; fake tensors ask, too.
bool has_engine(const RecurrentCall& call) {
  return enabled() && is_kernel_dtype(call.input.scalar_type());
}

bool covered(const RecurrentCall& call) { return has_engine(call) || none_covered({&call.input}); }

// ---- numbers of 16 bits, which are computed in 32 -----------------------------------------------

// Contiguous and in the compute type.
Tensor in_compute_type(const Tensor& t) {
  check_allocated(t);
  return *widened(t);
}

// Contiguous numbers of the compute type in the dtype of the call.
Tensor narrowed(const RecurrentCall& call, Tensor t) {
  const at::ScalarType dtype = call.input.scalar_type();
  if (!t.defined() || t.scalar_type() == dtype) {
    return t;
  }
  return fastact::narrowed(t.const_data_ptr(), t.sizes(), dtype);
}

// ---- sequences of several lengths ---------------------------------------------------------------

// The batch in the order of its lengths, and what of it runs at each step.
struct Lengths {
  int64_t steps;
  int64_t batch;
  bool ragged = false;         // else the batch is in its own order
  std::vector<int64_t> order;  // of ragged ones: the sequence that is at a place
  std::vector<int64_t> rows;
  std::vector<int64_t> offsets;

  Lengths(const RecurrentCall& call, int64_t steps, int64_t batch)
      : steps(steps), batch(batch), rows(steps, batch), offsets(steps + 1) {
    if (is_defined(call.lengths)) {
      const Tensor lengths = contiguous(*call.lengths);
      const int64_t* length = lengths.const_data_ptr<int64_t>();
      ragged = std::any_of(length, length + batch, [&](int64_t n) { return n != steps; });
      if (ragged) {
        order.resize(batch);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return length[a] > length[b]; });
        std::fill(rows.begin(), rows.end(), 0);
        for (int64_t i = 0; i < batch; ++i) {
          for (int64_t t = 0; t < length[i]; ++t) {
            ++rows[t];
          }
        }
      }
    }
    for (int64_t t = 0; t < steps; ++t) {
      offsets[t + 1] = offsets[t] + rows[t];
    }
  }

  // f(row of packed sequences, row of [T, B]) for those of the steps [first, last).
  template <class F>
  void each_row(int64_t first, int64_t last, const F& f) const {
    for (int64_t t = first; t < last; ++t) {
      for (int64_t i = 0; i < rows[t]; ++i) {
        f(offsets[t] + i, t * batch + order[i]);
      }
    }
  }

  // [layers, T, B, F], or [T, B, F], as rows of packed sequences.
  Tensor packed(const Tensor& t) const {
    if (!ragged) {
      return t;
    }
    const int64_t layers = t.dim() == 4 ? t.size(0) : 1;
    const int64_t bytes = t.size(-1) * t.element_size();
    Tensor result = empty({layers, offsets[steps], t.size(-1)}, t.scalar_type());
    const char* from = static_cast<const char*>(t.const_data_ptr());
    char* to = static_cast<char*>(result.mutable_data_ptr());
    for (int64_t layer = 0; layer < layers; ++layer) {
      parallel_for(steps, 8, [&](int64_t first, int64_t last) {
        each_row(first, last, [&](int64_t row, int64_t place) {
          std::memcpy(to + row * bytes, from + place * bytes, bytes);
        });
      });
      from += steps * batch * bytes;
      to += offsets[steps] * bytes;
    }
    return result;
  }

  // The inverse; 0 past a sequence's end.
  Tensor unpacked(const Tensor& t) const {
    if (!ragged) {
      return t;
    }
    const int64_t bytes = t.size(-1) * t.element_size();
    Tensor result = empty({steps, batch, t.size(-1)}, t.scalar_type());
    const char* from = static_cast<const char*>(t.const_data_ptr());
    char* to = static_cast<char*>(result.mutable_data_ptr());
    parallel_for(steps, 8, [&](int64_t first, int64_t last) {
      for (int64_t step = first; step < last; ++step) {
        for (int64_t i = rows[step]; i < batch; ++i) {
          std::memset(to + (step * batch + order[i]) * bytes, 0, bytes);
        }
      }
      each_row(first, last, [&](int64_t row, int64_t place) {
        std::memcpy(to + place * bytes, from + row * bytes, bytes);
      });
    });
    return result;
  }

  // States [S, B, F], of the sequences by length; and back.
  Tensor sorted(const Tensor& states) const { return reordered(states, /*back=*/false); }
  Tensor unsorted(const Tensor& states) const { return reordered(states, /*back=*/true); }

 private:
  Tensor reordered(const Tensor& states, bool back) const {
    if (!ragged || !states.defined()) {
      return states;
    }
    const int64_t bytes = states.size(2) * states.element_size();
    Tensor result = empty(states.sizes(), states.scalar_type());
    const char* from = static_cast<const char*>(states.const_data_ptr());
    char* to = static_cast<char*>(result.mutable_data_ptr());
    for (int64_t s = 0; s < states.size(0); ++s) {
      for (int64_t i = 0; i < batch; ++i) {
        std::memcpy(to + (back ? order[i] : i) * bytes, from + (back ? i : order[i]) * bytes,
                    bytes);
      }
      from += batch * bytes;
      to += batch * bytes;
    }
    return result;
  }
};

// ---- a call as the engine's problem -------------------------------------------------------------

struct Operands {
  RecurrentSizes sizes;
  Lengths lengths;
  Tensor x;
  Tensor noise;
  Tensor hx;
  Tensor cx;
  std::vector<Tensor> tensors;  // of the weights, while they are used
  std::vector<RecurrentWeights> weights;
  RecurrentProblem problem;

  Operands(const RecurrentCall& call, RecurrentSizes s)
      : sizes(std::move(s)), lengths(call, call.input.size(0), call.input.size(1)) {
    x = lengths.packed(in_compute_type(call.input));
    hx = lengths.sorted(in_compute_type(call.hx));
    if (call.is_lstm()) {
      cx = lengths.sorted(in_compute_type(call.cx));
    }
    if (is_defined(call.dropout_noise)) {
      noise = lengths.packed(in_compute_type(*call.dropout_noise));
    }
    tensors.reserve(call.weights.size());
    for (const Tensor& w : call.weights) {
      tensors.push_back(in_compute_type(w));
    }
    for (std::size_t i = 0; i < tensors.size(); i += sizes.weights_each) {
      const auto at = [&](bool there, std::size_t j) {
        return there ? tensors[i + j].const_data_ptr() : nullptr;
      };
      weights.push_back({at(true, 0), at(true, 1), at(call.has_biases, 2), at(call.has_biases, 3),
                         at(sizes.projects, sizes.weights_each - 1)});
    }
    problem = {table_dtype(reserve_dtype(call)),
               cell_of(call.mode),
               lengths.steps,
               lengths.batch,
               call.input.size(2),
               sizes.hidden.guard_int(__FILE__, __LINE__),
               sizes.state.guard_int(__FILE__, __LINE__),
               sizes.layers,
               sizes.directions,
               lengths.rows.data(),
               lengths.offsets.data(),
               weights.data(),
               x.const_data_ptr(),
               noise.defined() ? noise.const_data_ptr() : nullptr,
               hx.const_data_ptr(),
               cx.defined() ? cx.const_data_ptr() : nullptr};
  }
  Operands(const Operands&) = delete;
};

void* memory_of(const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }
const void* const_memory_of(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

}  // namespace

at::ScalarType reserve_dtype(const RecurrentCall& call) {
  return compute_dtype(call.input.scalar_type());
}

c10::SymInt reserve_elements(const RecurrentCall& call, const RecurrentSizes& s) {
  if (!has_engine(call)) {
    return 0;
  }
  return s.steps * s.batch * (s.layers * s.directions) *
         recurrent_reserve_columns(cell_of(call.mode), s.hidden, s.state,
                                   c10::elementSize(reserve_dtype(call)), s.projects);
}

RecurrentResults recurrent_cpu(const RecurrentCall& call, bool training) {
  const OperatorName op(call.name());
  RecurrentSizes sizes = check_recurrent(op, call);
  if (!covered(call)) {
    return training ? compose_recurrent_training(call) : compose_recurrent(call);
  }
  check_length_values(op, call);
  const at::ScalarType dtype = reserve_dtype(call);
  Operands operands(call, std::move(sizes));
  const RecurrentProblem& p = operands.problem;
  RecurrentResults results;
  if (training) {
    results.reserve =
        empty({reserve_elements(call, operands.sizes).guard_int(__FILE__, __LINE__)}, dtype);
  }
  const int64_t states = p.layers * p.directions;
  // The rows of [T, B] are those of packed sequences where all are as long.
  Tensor y = operands.lengths.ragged ? empty({p.all_rows(), p.width()}, dtype)
                                     : empty({p.steps, p.batch, p.width()}, dtype);
  Tensor hy = empty({states, p.batch, p.state}, dtype);
  Tensor cy = call.is_lstm() ? empty({states, p.batch, p.hidden}, dtype) : Tensor();
  if (p.batch > 0) {
    recurrent_forward(p, y.mutable_data_ptr(), hy.mutable_data_ptr(), memory_of(cy),
                      memory_of(results.reserve));
  }
  const Lengths& lengths = operands.lengths;
  results.output = lengths.unpacked(narrowed(call, std::move(y)));
  results.hy = lengths.unsorted(narrowed(call, std::move(hy)));
  results.cy = lengths.unsorted(narrowed(call, std::move(cy)));
  return results;
}

RecurrentGradients recurrent_backward_cpu(const RecurrentCall& call,
                                          const RecurrentOutputGradients& grads,
                                          const Tensor& reserve, const RecurrentMask& mask) {
  const OperatorName op(call.name(), "_backward");
  RecurrentSizes sizes = check_recurrent_backward(op, call, grads, mask);
  check_defined(op, "reserve", reserve);
  if (!covered(call) || reserve.numel() == 0) {
    return compose_recurrent_backward(call, grads, mask);
  }
  check_length_values(op, call);
  const at::ScalarType dtype = reserve_dtype(call);
  const int64_t expected = reserve_elements(call, sizes).guard_int(__FILE__, __LINE__);
  TORCH_CHECK(reserve.is_cpu() && has_sizes(reserve) && reserve.is_contiguous() &&
                  reserve.scalar_type() == dtype && reserve.numel() == expected,
              op, "reserve: expected what ", call.name(), "_training() returned, ", expected,
              " elements of ", dtype, ", got ", reserve.toString(), " of shape ", reserve.sizes());
  check_allocated(reserve);
  const Operands operands(call, std::move(sizes));
  const RecurrentProblem& p = operands.problem;
  const Lengths& lengths = operands.lengths;
  const auto given = [&](const Tensor& grad) {
    return grad.defined() ? in_compute_type(grad) : Tensor();
  };
  const Tensor dy = grads.output.defined() ? lengths.packed(given(grads.output)) : Tensor();
  const Tensor dhy = lengths.sorted(given(grads.hy));
  const Tensor dcy = lengths.sorted(given(grads.cy));
  std::size_t at = 0;
  const auto wanted = [&](at::IntArrayRef sizes) {
    return mask[at++] ? empty(sizes, dtype) : Tensor();
  };
  RecurrentGradients result;
  result.input =
      wanted(lengths.ragged ? at::IntArrayRef{p.all_rows(), p.input} : call.input.sizes());
  result.hx = wanted(call.hx.sizes());
  if (call.is_lstm()) {
    result.cx = wanted(call.cx.sizes());
  }
  for (const Tensor& w : call.weights) {
    result.weights.push_back(wanted(w.sizes()));
  }
  std::vector<RecurrentWeightGradients> weights;
  for (std::size_t i = 0; i < result.weights.size(); i += operands.sizes.weights_each) {
    const auto memory = [&](bool there, std::size_t j) {
      return there ? memory_of(result.weights[i + j]) : nullptr;
    };
    weights.push_back({memory(true, 0), memory(true, 1), memory(call.has_biases, 2),
                       memory(call.has_biases, 3),
                       memory(operands.sizes.projects, operands.sizes.weights_each - 1)});
  }
  recurrent_backward(
      p, reserve.const_data_ptr(), const_memory_of(dy), const_memory_of(dhy), const_memory_of(dcy),
      {memory_of(result.input), memory_of(result.hx), memory_of(result.cx), weights.data()});
  const auto finished = [&](Tensor& t) { t = narrowed(call, std::move(t)); };
  if (result.input.defined()) {
    finished(result.input);
    result.input = lengths.unpacked(result.input);
  }
  finished(result.hx);
  result.hx = lengths.unsorted(result.hx);
  finished(result.cx);
  result.cx = lengths.unsorted(result.cx);
  for (Tensor& w : result.weights) {
    finished(w);
  }
  return result;
}

}  // namespace fastact
