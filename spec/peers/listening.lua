--- What the servers of this folder share that have options which the command line has not: loaded with dofile, it finds korv and returns a
-- function. That makes a server of the program's arguments, OPTIONS SCRIPT…, where OPTIONS is a JSON object of korv.server's options, and
-- says that it listens as `korv serve` does.
local root, name = arg[0]:match "^(.*)/spec/peers/([^/]*)%.lua$"
local build = os.getenv "KORV_BUILD" or root .. "/build"
package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(root, root, package.path)
package.cpath = ("%s/?.so;%s"):format(build, package.cpath)

local korv = require "korv"

local function must(value, message, ...)
  if value then return value, message, ... end
  io.stderr:write(name, ": ", tostring(message), "\n")
  os.exit(1)
end

return function()
  local server = must(korv.server(must(korv.json.decode(arg[1]))))
  must(server:load(table.unpack(arg, 2)))
  must(server:listen())
  local key = server.host_keys[1]
  print(("korv: listening on 127.0.0.1 port %d, host key %s (%s)"):format(server.port, key.fingerprint, key.type))
  io.stdout:flush()
  return server
end
