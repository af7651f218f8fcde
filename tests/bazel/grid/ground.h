// What the lowest layer stands upon.
#pragma once
constexpr unsigned kModulus = 65521;
unsigned ground(unsigned start);
