// Turns standard input into a C++ source: its size, its checksum, its first bytes.
#include <cstdio>

#include "tools/checksum.h"
int main(int, char** arguments) {
  Checksum checksum;
  unsigned long size = 0;
  std::printf("extern const unsigned char %s_head[64] = {", arguments[1]);
  for (int byte; (byte = std::getchar()) != EOF; ++size) {
    checksum.Add(static_cast<unsigned char>(byte));
    if (size < 64) std::printf("%d,", byte);
  }
  std::printf("};\nextern const unsigned long %s_size = %lu;\n", arguments[1], size);
  std::printf("extern const unsigned long %s_sum = %u;\n", arguments[1], checksum.Value());
}
