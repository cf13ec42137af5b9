-- The machine beneath: each endpoint waits for something that the loop does meanwhile, with luv or with korv's own.
local korv = require "korv"
local uv = require "luv"

-- What a luv function of the form f(…, callback(problem, result)) brings.
local function wait_for(start, ...)
  local arguments = table.pack(...)
  local result, problem = korv.await(function(resume)
    arguments[arguments.n + 1] = function(failed, value) resume(value, failed) end
    local request = start(table.unpack(arguments, 1, arguments.n + 1))
    return function() request:cancel() end
  end)
  return result or korv.abort(502, { message = tostring(problem) })
end

local function read_file(path)
  local file = wait_for(uv.fs_open, path, "r", 0)
  local closing <close> = setmetatable({}, { __close = function() uv.fs_close(file, function() end) end }) -- luacheck: ignore 211
  return wait_for(uv.fs_read, file, 65536, 0)
end

return function(app)
  app:get("/host/uptime", { doc = "Runs a program.", timeout = 5 }, function()
    local uptime = korv.exec { "uptime" } or korv.abort(501, { message = "this machine has no uptime" })
    return 200, { uptime = uptime.stdout:match "^%s*(.-)%s*$", status = uptime.code }
  end)

  app:get("/host/load", { doc = "Reads a file." }, function()
    local one, five, fifteen = read_file "/proc/loadavg":match "^(%S+) (%S+) (%S+)"
    return 200, { tonumber(one), tonumber(five), tonumber(fifteen) }
  end)

  app:get("/host/address/:name", { doc = "Resolves a name.", timeout = 10 }, function(request)
    local addresses = korv.array {}
    for i, found in ipairs(wait_for(uv.getaddrinfo, request.params.name, nil, { socktype = "stream" })) do addresses[i] = found.addr end
    return 200, addresses
  end)

  app:get("/host/timer/:ms", { doc = "Waits on a timer of luv's.", timeout = 10 }, function(request)
    local timer <close> = setmetatable({ handle = uv.new_timer() }, { __close = function(self) self.handle:close() end })
    korv.await(function(resume) timer.handle:start(math.tointeger(tonumber(request.params.ms)) or 0, 0, resume) end)
    return 200
  end)
end
