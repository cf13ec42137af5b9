rockspec_format = "3.0"
package = "korv"
version = "0.3.0-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "An API over SSH instead of HTTP: endpoints are Lua functions, clients log in with SSH keys",
  detailed = [[
korv serves endpoints (GET, STORE, UPDATE, DELETE; JSON in, a status code and JSON out) over SSH, with the keys that people already
have. A C core on libssh and libuv moves the bytes; endpoints are Lua functions; a Lua client and the command korv call them.
]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.5",
  "luv >= 1.44",
  "lua-cjson >= 2.1.0",
  "argparse >= 0.7.1",
}
external_dependencies = {
  LIBSSH = { header = "libssh/libssh.h" },
  OPENSSL = { header = "openssl/rand.h" },
  LIBUV = { header = "uv.h" },
  LIBDEFLATE = { header = "libdeflate.h" },
}
build = {
  type = "cmake",
  variables = {
    CMAKE_BUILD_TYPE = "RelWithDebInfo",
    CMAKE_INSTALL_PREFIX = "$(PREFIX)",
    LIBDIR = "$(LIBDIR)",
    LUADIR = "$(LUADIR)",
  },
  install = {
    bin = { korv = "scripts/korv" },
  },
}
