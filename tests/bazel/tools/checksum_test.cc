// The published value for the word "Wikipedia".
#include "tools/checksum.h"
int main() {
  Checksum checksum;
  for (const char* letter = "Wikipedia"; *letter; ++letter) checksum.Add(*letter);
  return checksum.Value() == 0x11E60398 ? 0 : 1;
}
