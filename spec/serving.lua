--- What the specs of the real `korv serve` as processes share, on top of spec.pair: how it is started, which processes there are of it, and
-- clients of it. It serves spec/data/serving.lua, and everything that comes of it ends with the spec (spec/peers/quick_korv.lua).
-- @module spec.serving

local korv = require "korv"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local serving = {}

local Server = {}

local pids = {} -- of next servers, which are no children of ours

local function append(list, more) return table.move(more or {}, 1, #(more or {}), #list + 1, list) end

--- The processes that a process has begun and that are there, zombies too.
-- @int pid
-- @treturn {int,...}
function serving.children(pid)
  local list = {}
  for child in (support.read(("/proc/%d/task/%d/children"):format(pid, pid)) or ""):gmatch "%d+" do list[#list + 1] = tonumber(child) end
  return list
end

--- How many file descriptors a process and its children have open.
-- @int pid
function serving.all_descriptors(pid)
  local count = support.descriptors(pid)
  for _, child in ipairs(serving.children(pid)) do count = count + support.descriptors(child) end
  return count
end

--- Sends a signal.
-- @int pid
-- @string name as luv knows it
function serving.signal(pid, name) assert(uv.kill(pid, name)) end

--- Waits until something is so; an error that shows the server where that does not come.
-- @tparam Server server
-- @string what
-- @tparam function done
-- @number[opt] seconds
function serving.await(server, what, done, seconds)
  if not support.wait_for(done, seconds) then error(server:describe("did not come to this: " .. what), 2) end
end

local function adopt_methods(server)
  local processes = getmetatable(server)
  return setmetatable(server, { __index = function(_, name) return Server[name] or processes.__index[name] end })
end

--- The command line of a server.
-- @tparam table options as for `start`
function serving.argv(options)
  local argv = append({}, options.before)
  append(argv, { "lua5.4", support.root .. "/spec/peers/quick_korv.lua", "serve", "--host", "127.0.0.1",
    "--port", tostring(options.port or 0), "--host-key", options.host_key or support.key "host",
    "--authorized-keys", support.authorized_keys "client", "--no-watch" })
  if (options.workers or 1) > 1 then append(argv, { "--workers", tostring(options.workers) }) end
  append(argv, options.arguments)
  return support.wrapped(append(argv, { options.script or support.root .. "/spec/data/serving.lua" }))
end

--- Starts a server; it is not known yet whether it listens.
-- @tparam table options `workers`, `port`, `host_key`, `script`; `arguments`: further ones; `before`: a command that runs it; `env`;
-- `watchdog` and `linger`: seconds, in place of those that a server has
-- @treturn Server
function serving.launch(options)
  local env = { KORV_SPEC_FOLDER = support.path "", KORV_SPEC_WATCHDOG = options.watchdog, KORV_SPEC_LINGER = options.linger or 0.5,
    KORV_SPEC_READY = options.ready }
  for name, value in pairs(options.env or {}) do env[name] = value end
  local server = adopt_methods(support.start(serving.argv(options), { env = env, stdin = true }))
  server.host_key = support.key "host"
  return server
end

--- Starts a server and waits until it serves.
-- @tparam[opt] table options as for `launch`
-- @treturn Server with `port`, `host_key`, `fingerprint`
function serving.start(options)
  local server = serving.launch(options or {})
  server:ready()
  return server
end

--- What starts servers of so many processes.
-- @int workers
-- @treturn function of options, as for `launch`; it returns the Server
function serving.starter(workers)
  return function(options)
    options = options or {}
    options.workers = workers
    return serving.start(options)
  end
end

--- Reads a stream of items to its end, and raises where one is missing.
-- @tparam Client client
-- @int count
-- @tparam[opt] function came is called after each
function serving.read_items(client, count, came)
  local last = 0
  for item, problem in client:stream("GET", ("/items?n=%d&s=0.05"):format(count)) do
    if problem then error(problem) end
    if item.seq ~= last + 1 then error(("item %d came after %d"):format(item.seq, last)) end
    last = item.seq
    if came then came() end
  end
  if last ~= count then error(("the stream ended with item %d"):format(last)) end
end

--- Waits until it, or the next server in its place, says that it listens.
function Server:ready()
  local line = self:line() or "nothing"
  local port, fingerprint = line:match "^korv: listening on 127%.0%.0%.1 port (%d+), host key (SHA256:%S+) "
  if not port then error(self:describe("did not say that it listens, but " .. line), 2) end
  self.port, self.fingerprint = tonumber(port), fingerprint
end

--- Waits for a line of the log.
-- @string pattern
-- @number[opt] seconds
-- @treturn string its captures
function Server:logged(pattern, seconds)
  serving.await(self, "the log has " .. pattern, function() return self.stderr:find(pattern) end, seconds)
  return self.stderr:match(pattern)
end

--- Starts the next server in its place and waits until it serves.
-- @int pid of the present one
-- @treturn int the next one's
function Server:upgrade(pid)
  local from = #self.stderr
  serving.signal(pid, "sigusr2")
  local function started() return self.stderr:match("started the next server %(process (%d+)%)", from) end
  serving.await(self, "a next server", started)
  local next_pid = tonumber(started())
  pids[#pids + 1] = next_pid
  self:ready()
  self:logged("the next server %(process " .. next_pid .. "%) is ready")
  return next_pid
end

--- Waits until a process of it has ended.
-- @int pid
-- @number[opt] seconds
function Server:gone(pid, seconds)
  serving.await(self, ("process %d has ended"):format(pid), function() return not support.is_running(pid) end, seconds)
end

--- The workers' processes.
-- @int[opt] pid of the supervisor
function Server:workers(pid) return serving.children(pid or self.pid) end

--- A client; or nil, message, name.
-- @tparam[opt] table options of korv.client
function Server:dial(options) return pair.dial(self, options) end

--- A request of a client of one's own, and its answer's body.
-- @string resource
function Server:ask(resource)
  local client = assert(self:dial())
  local response = assert(client:get(resource))
  client:close()
  return response.body, response.code
end

--- Begins functions in coroutines beside each other.
-- @tparam {function,...} list
-- @treturn function that waits until all have returned, for so many seconds at most; what one raised is raised
function serving.begin(list)
  local left, problem = #list, nil
  for _, fn in ipairs(list) do
    korv.spawn(function()
      local ok, message = pcall(fn)
      if not ok then problem = problem or message end
      left = left - 1
    end)
  end
  return function(seconds)
    local over = support.wait_for(function() return left == 0 or problem end, seconds or 30)
    if problem then error(problem, 0) end
    if not over then error(("%d of %d have not ended"):format(left, #list), 2) end
  end
end

--- Runs functions in coroutines beside each other until all have returned.
-- @tparam {function,...} list
-- @number[opt] seconds
function serving.together(list, seconds) serving.begin(list)(seconds) end

--- Ends everything. To be called after each spec that starts a server.
function serving.finish()
  for _, pid in ipairs(pids) do uv.kill(pid, "sigkill") end
  pids = {}
  pair.finish()
end

return serving
