--- What the specs of a server's life share, on top of spec.support: servers in processes of their own whose files change, and what they
-- log.
-- @module spec.changing

local korv = require "korv"
local support = require "spec.support"

local changing = {}

local function launch(argv) return support.listening(support.start(support.wrapped(argv))) end

--- Arguments that make `korv serve` a server on a free port that lets the key "client" in and logs text; then these.
-- @tparam {string,...} more
-- @treturn {string,...}
function changing.argv(more)
  local argv = { support.korv, "serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "text",
    "--drain", "1" }
  local given = " " .. table.concat(more, " ") .. " "
  if not given:find(" --host-key ", 1, true) then table.move({ "--host-key", support.key "host" }, 1, 2, #argv + 1, argv) end
  if not given:find(" --authorized-keys ", 1, true) then
    table.move({ "--authorized-keys", support.authorized_keys "client" }, 1, 2, #argv + 1, argv)
  end
  return table.move(more, 1, #more, #argv + 1, argv)
end

--- Starts `korv serve`, and waits until it listens.
-- @tparam {string,...} more arguments
-- @treturn Process as from support.serve
function changing.command(more) return launch(changing.argv(more)) end

--- Starts a Lua program that serves (spec/peers/reloading_server.lua), and waits until it listens.
-- @tparam table options of korv.server
-- @tparam string ... scripts
-- @treturn Process as from support.serve
function changing.program(options, ...)
  local all = { host = "127.0.0.1", port = 0, host_keys = { support.key "host" } }
  for name, value in pairs(options) do all[name] = value end
  all.authorized_client_keys = all.authorized_client_keys or support.authorized_keys "client"
  return launch { "lua5.4", support.root .. "/spec/peers/reloading_server.lua", korv.json.encode(all), ... }
end

--- Waits until a server has logged what matches, and forgets what it had logged until then.
-- @tparam Process server
-- @string pattern
-- @int[opt=1] count of lines that match
function changing.logged(server, pattern, count)
  local function found()
    local lines = 0
    for text in server.stderr:gmatch "[^\n]+\n" do
      if text:find(pattern) then lines = lines + 1 end
    end
    return lines >= (count or 1)
  end
  if not support.wait_for(found) then error(server:describe("did not log " .. pattern), 2) end
  server.stderr = ""
end

return changing
