// Adler-32 of a stream of bytes.
#pragma once
#include <cstdint>
class Checksum {
 public:
  void Add(unsigned char byte);
  uint32_t Value() const { return high_ << 16 | low_; }

 private:
  uint32_t low_ = 1, high_ = 0;
};
