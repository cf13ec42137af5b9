--- An app that is large enough for a reload to cost something, and a server that is told to reload again and again.
-- @module bench.reloading

local peers = require "bench.peers"
local process = require "bench.process"
local uv = require "luv"

local reloading = {}

local MODULE = [[
local module = {}
function module.clip(text, most)
  if type(text) ~= "string" then return "" end
  return #text > most and text:sub(1, most) .. "…" or text
end
return module
]]

local ENDPOINT = [[
  app:%s("/things%d/%d%s", { doc = "One of many." }, function(request)
    local name = request.params.name or request.query.name
    if not name then return 404, { message = "There is no such thing" } end
    local list = {}
    for i = 1, 3 do list[i] = { rank = i, label = m%d.clip(name, i * 8) } end
    return 200, { name = name, list = list }
  end)
]]

local VERBS = { "get", "store", "update", "delete" }

--- Writes 200 endpoints in 10 scripts, which share 4 modules.
-- @treturn {string,...} the scripts' paths
function reloading.write_scripts()
  local paths = { peers.root .. "/scripts/endpoints/hello.lua" }
  for i = 1, 4 do process.write(peers.path(("m%d.lua"):format(i)), MODULE) end
  for i = 1, 10 do
    local parts = { 'local m1, m2, m3, m4 = require "m1", require "m2", require "m3", require "m4"\n\nreturn function(app)\n' }
    for n = 1, 20 do parts[#parts + 1] = ENDPOINT:format(VERBS[n % 4 + 1], i, n, n % 3 == 0 and "/:name" or "", n % 4 + 1) end
    paths[#paths + 1] = process.write(peers.path(("things%d.lua"):format(i)), table.concat(parts) .. "end\n")
  end
  return paths
end

--- Has a server reload again and again.
-- @tparam table server
-- @number every_ms
-- @treturn function stops that
function reloading.begin(server, every_ms)
  local timer = uv.new_timer()
  timer:start(0, every_ms, function() server.process.handle:kill "sighup" end)
  return function() timer:close() end
end

return reloading
