--- The command `korv` as it is, but for how long some things take that nobody sets: KORV_SPEC_WATCHDOG, KORV_SPEC_LINGER and
-- KORV_SPEC_READY are seconds. And it ends where its stdin does, whose other end the spec holds: so do workers and next servers, which are
-- no children of the spec's.
local root = arg[0]:match "^(.*)/spec/peers/[^/]*$"
local build = os.getenv "KORV_BUILD" or root .. "/build"
package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(root, root, package.path)
package.cpath = ("%s/?.so;%s"):format(build, package.cpath)

local service, supervisor = require "korv.service", require "korv.supervisor"
supervisor._watchdog_seconds = tonumber(os.getenv "KORV_SPEC_WATCHDOG") or supervisor._watchdog_seconds
service._linger_seconds = tonumber(os.getenv "KORV_SPEC_LINGER") or service._linger_seconds
service._ready_seconds = tonumber(os.getenv "KORV_SPEC_READY") or service._ready_seconds

local uv = require "luv"
local leash = uv.new_pipe(false)
leash:open(0)
leash:read_start(function(_, bytes)
  if not bytes then os.exit(9) end
end)
leash:unref()

os.exit(require "korv.command".main(arg))
