// The two sums of Adler-32, reduced at every byte.
#include "tools/checksum.h"
void Checksum::Add(unsigned char byte) {
  low_ = (low_ + byte) % 65521;
  high_ = (high_ + low_) % 65521;
}
