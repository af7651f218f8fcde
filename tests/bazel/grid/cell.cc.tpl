// Made from cell.cc.tpl: asks two cells below and adds its own salt.
#include "grid/@NAME@.h"
unsigned @NAME@(unsigned start) {
  return (3 * @LEFT@(start) + @RIGHT@(start) + @SALT@) % kModulus;
}
