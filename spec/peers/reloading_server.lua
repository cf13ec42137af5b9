--- A server with options that the command line has not, and all of a server's life: `lua5.4 reloading_server.lua OPTIONS SCRIPT…`. OPTIONS
-- is a JSON object of korv.server's options. It says that it listens as `korv serve` does, and logs errors, as text.
local root = arg[0]:match "^(.*)/spec/peers/[^/]*$"
local build = os.getenv "KORV_BUILD" or root .. "/build"
package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(root, root, package.path)
package.cpath = ("%s/?.so;%s"):format(build, package.cpath)

local korv = require "korv"

local function must(value, message, ...)
  if value then return value, message, ... end
  io.stderr:write("reloading_server: ", tostring(message), "\n")
  os.exit(1)
end

korv.log.format "text"
korv.log.level "error"
local server = must(korv.server(must(korv.json.decode(arg[1]))))
must(server:load(table.unpack(arg, 2)))
must(server:listen())
local key = server.host_keys[1]
print(("korv: listening on 127.0.0.1 port %d, host key %s (%s)"):format(server.port, key.fingerprint, key.type))
io.stdout:flush()
server:run()
os.exit(0, true)
