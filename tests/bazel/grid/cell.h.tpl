// Made from cell.h.tpl: one cell of the grid.
#pragma once
#include "grid/@LEFT@.h"
#include "grid/@RIGHT@.h"
unsigned @NAME@(unsigned start);
