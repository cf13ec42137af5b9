--- What the specs of `korv serve` as processes call. KORV_SPEC_FOLDER is the spec's folder: a file fail-PID there makes loading fail in the
-- process PID, a file `fail` in all.
local korv = require "korv"
local uv = require "luv"

local folder = os.getenv "KORV_SPEC_FOLDER"

local function is_there(name) return uv.fs_stat(folder .. name) ~= nil end

local pid = math.tointeger(uv.os_getpid())
if is_there "fail" or is_there("fail-" .. pid) then error("told to fail in " .. pid, 0) end

-- What has begun, whole lines that several processes write at once.
local function note_begin(name)
  local file <close> = assert(io.open(folder .. "begun", "a"))
  file:write(name, "\n")
end

local function output_of(command)
  local pipe <close> = assert(io.popen(command))
  return pipe:read "a"
end

return function(app)
  app.state.file = app.state.file or assert(io.open(arg[0])) -- as apps do; not closed on exec

  app:get("/pid", function() return 200, pid end)
  app:get("/who", function() return 200, { pid = pid, generation = app.generation } end)

  -- Notes that it begins, and answers after a while.
  local function work(request)
    note_begin(request.body.name)
    if request.body.seconds > 0 then korv.sleep(request.body.seconds) end
    return 200, { name = request.body.name, pid = pid }
  end
  app:store("/work", work)
  app:get("/work", work)

  -- ?n items, one each ?s seconds.
  app:get("/items", function(request)
    for i = 1, tonumber(request.query.n) do
      request:send { seq = i, pid = pid }
      korv.sleep(tonumber(request.query.s))
    end
    return 200
  end)

  app:get("/reload", function()
    local ok, message = app:reload()
    return ok and 200 or 500, message
  end)

  -- Stands still. The program that it waits for is told in a file, so that somebody can end it.
  app:get("/block", function()
    os.execute(("exec >/dev/null 2>&1 </dev/null; echo $$ >'%sblocked'; exec sleep 60"):format(folder))
    return 200
  end)

  -- What a program inherits, run in each way there is.
  app:get("/inherited", function(request)
    local list = [[ls -l /proc/self/fd | sed -n 's/.* \([0-9]*\) -> \(.*\)/\1 \2/p'; env | grep -E '^(KORV_[^S]|KORV_SOCKETS|LISTEN|NOTIFY|WATCHDOG)']]
    if request.query.way == "popen" then return 200, output_of(list) end
    if request.query.way == "execute" then
      local path = folder .. "inherited-" .. pid
      os.execute(("{ %s; } >'%s'"):format(list, path))
      local file <close> = assert(io.open(path))
      return 200, file:read "a"
    end
    local ran = assert(korv.exec { "sh", "-c", list })
    return 200, ran.stdout
  end)
end
