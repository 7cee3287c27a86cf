// Gives Python objects of the core. pybind11's own ways free an object twice, or end the process,
// if memory runs out while it notes the object: it takes the object to be its own before the holder
// is there. Here the object is not pybind11's until then.
#ifndef PYCKPT_PYTHON_OWNED_H_
#define PYCKPT_PYTHON_OWNED_H_

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

namespace pyckpt {

// What __init__ does, bound with pybind11::detail::is_new_style_constructor(). The class is bound
// with std::shared_ptr as its holder.
template <typename T>
void Construct(pybind11::detail::value_and_holder* place, std::shared_ptr<T> made) {
  place->inst->owned = false;
  place->value_ptr() = made.get();
  place->type->init_instance(place->inst, &made);
}

// What a function returns.
template <typename T>
pybind11::object Owned(std::shared_ptr<T> made) {
  using Caster = pybind11::detail::type_caster_generic;
  return pybind11::reinterpret_steal<pybind11::object>(
      Caster::cast(made.get(), pybind11::return_value_policy::reference, {},
                   pybind11::detail::get_type_info(typeid(T)), nullptr, nullptr, &made));
}

}  // namespace pyckpt

#endif  // PYCKPT_PYTHON_OWNED_H_
