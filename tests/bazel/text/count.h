// How often each word occurs, whatever its case.
#pragma once
#include <map>

#include "text/fold.h"
#include "text/split.h"
std::map<Text, int> Count(const Text& text);
