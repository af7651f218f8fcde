// The lowest answer: the number itself.
#include "grid/ground.h"
unsigned ground(unsigned start) { return start % kModulus; }
