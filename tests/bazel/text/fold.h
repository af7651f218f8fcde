// One letter case for all.
#pragma once
#include "text/view.h"
Text Fold(const Text& text);
