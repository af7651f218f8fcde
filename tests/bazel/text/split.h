// Words of a text.
#pragma once
#include "text/view.h"
Texts Split(const Text& text);
