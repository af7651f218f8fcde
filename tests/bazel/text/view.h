// Names of the types that this package's functions speak in.
#pragma once
#include <string>
#include <vector>
using Text = std::string;
using Texts = std::vector<std::string>;
