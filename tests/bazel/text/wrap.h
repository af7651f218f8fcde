// Words in lines of at most `width` bytes.
#pragma once
#include "text/split.h"
Text Wrap(const Text& text, unsigned width);
