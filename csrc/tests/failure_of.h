// What a launch of the emulation throws.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/device.cuh"

namespace sod::test {

// "" of a launch that ends well.
template <class Launch>
std::string failure_of(Launch launch) {
  try {
    launch();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace sod::test
