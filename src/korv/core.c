/* korv.core: the module's entry. */
#include <dlfcn.h>

#include "korv/korv.h"

/* Timers and handles of the loop outlive the Lua state that loaded us, and so does what OpenSSL was given: the code must stay mapped. */
static void stay_loaded(void) {
  Dl_info self;
  /* NOLINTNEXTLINE(performance-no-int-to-ptr): of a function C makes no pointer to data in any other way */
  if (dladdr((void *)(uintptr_t)stay_loaded, &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_NODELETE);
}

LUALIB_API __attribute__((visibility("default"))) int luaopen_korv_core(lua_State *L);

int luaopen_korv_core(lua_State *L) {
  luaL_checkversion(L);
  stay_loaded();
  lua_newtable(L);
  host_json_open(L);
  hub_open(L);
  host_json_module(L);
  lua_setfield(L, -2, "json");
  key_open(L);
  timer_open(L);
  log_open(L);
  task_open(L);
  notify_open(L);
  slice_open(L);
  server_open(L);
  endpoint_open(L);
  metrics_open(L);
  connection_open(L);
  reader_open(L);
  fd_open(L);
  orphan_open(L);
  return 1;
}
