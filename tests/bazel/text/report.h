// A text, wrapped, and its most frequent words.
#pragma once
#include "text/count.h"
#include "text/wrap.h"
Text Report(const Text& text);
