--- Where the log goes: stderr of processes of their own, whether somebody reads it or not.

local cjson = require "cjson"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local O_NONBLOCK = tonumber("4000", 8)

-- Two ends, as file descriptors: what a process gets as its stderr, and what it is read from.
local function pipe()
  local ends = assert(uv.pipe({ nonblock = false }, { nonblock = false }))
  return ends.write, ends.read
end

local function socket()
  local ends = assert(uv.socketpair("stream", nil, { nonblock = false }, { nonblock = false }))
  return ends[1], ends[2]
end

-- Begins to read. What came is `text`; it is whole once `ended`.
local function read_all(fd)
  local reader = { text = "" }
  local pieces, stream = {}, uv.new_pipe(false)
  assert(stream:open(fd))
  stream:read_start(function(problem, bytes)
    pieces[#pieces + 1] = bytes
    reader.text = table.concat(pieces)
    if not problem and bytes then return end
    reader.ended = true
    stream:close()
  end)
  return reader
end

local ENV = { LUA_PATH = package.path, LUA_CPATH = package.cpath }

-- Starts a Lua program that has `korv`, `log` and `uv`, and a pipe as its stderr.
local function start(program)
  local path = support.write("program.lua", [[
    local korv, uv = require "korv", require "luv"
    local log = korv.log
    log.format "text"
    ]] .. program)
  local write, read = pipe()
  local process = support.start({ "lua5.4", path }, { stderr = write, env = ENV })
  uv.fs_close(write)
  return process, read
end

-- Runs it to its end. Returns what it wrote to stderr, line by line, and the process.
local function lines_of(program)
  local process, read = start(program)
  local reader, lines = read_all(read), {}
  pair.wait_for(function() return reader.ended end)
  for line in reader.text:gmatch "([^\n]*)\n" do lines[#lines + 1] = line end
  assert.equal("", reader.text:match "[^\n]*$")
  return lines, process:wait()
end

-- That these are lines 1 to count, in order.
local function assert_numbered(count, lines)
  assert.equal(count, #lines, lines[#lines])
  for i, line in ipairs(lines) do assert.matches(" line " .. i .. "%f[%D]", line) end
end

describe("the log of a program", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("is written in order, before the loop runs, in it and after it", function()
    assert_numbered(9, (lines_of [[
      local n = 0
      local function tell() n = n + 1 log.info("line %d", n) end
      tell()
      tell()
      local timer = uv.new_timer()
      timer:start(1, 0, function()
        tell()
        timer:close(tell)
        korv.spawn(function() tell() korv.sleep(0.001) tell() end)
        tell()
      end)
      korv.run()
      tell()
      tell()]]))
  end)

  it("is written at once where no loop runs", function()
    local lines = lines_of [[
      log.warn("line 1")
      io.stderr:write("line 2\n")
      uv.run()
      log.warn("line 3")
      io.stderr:write("line 4\n")]]
    for i = 1, 4 do assert.matches("line " .. i .. "$", lines[i]) end
  end)

  it("is written at once where the loop runs for a turn only", function()
    local lines = lines_of [[
      for i = 1, 5, 2 do
        local timer = uv.new_timer()
        timer:start(1, 0, function() timer:close() log.warn("line %d", i) end)
        while timer:is_active() do uv.run "once" end
        io.stderr:write("line ", i + 1, "\n")
      end]]
    for i = 1, 6 do assert.matches("line " .. i .. "$", lines[i]) end
  end)

  it("is written before the loop sleeps", function()
    local process, read = start [[
      local long, short = uv.new_timer(), uv.new_timer()
      long:start(1e6, 0, function() end)
      short:start(1, 0, function() log.info "line 1" end)
      korv.run()]]
    local reader = read_all(read)
    pair.wait_for(function() return reader.text:find "line 1\n$" end)
    process:kill()
    pair.wait_for(function() return reader.ended end)
  end)

  it("is written before the loop ends", function()
    local lines = lines_of [[
      uv.fs_stat(".", function()
        korv.spawn(function() log.info "line 1" uv.stop() end)
      end)
      korv.run()
      io.stderr:write "line 2\n"]]
    for i = 1, 2 do assert.matches("line " .. i .. "$", lines[i]) end
  end)

  it("is written once a turn of the loop", function()
    local lines = lines_of [[
      local function writes() return tonumber(io.open("/proc/self/io"):read("a"):match "syscw: (%d+)") end
      local timer, before = uv.new_timer()
      timer:start(1, 0, function()
        before = writes()
        for i = 1, 40 do log.info("line %d", i) end
        io.stderr:write(writes() - before .. " at first\n")
        timer:start(1, 0, function()
          timer:close()
          io.stderr:write(writes() - before - 1 .. " later\n")
        end)
      end)
      korv.run()]]
    assert.equal("0 at first", lines[1])
    assert.equal("1 later", table.remove(lines))
    table.remove(lines, 1)
    assert_numbered(40, lines)
  end)

  for how, ending in pairs {
    ["os.exit in a callback"] = { "os.exit(3)", 3 }, ["os.exit in a callback, closing Lua"] = { "os.exit(3, true)", 3 },
    ["the loop's end"] = { "idle:close()", 0 }, ["korv.stop"] = { "idle:close() korv.stop()", 0 },
  } do
    it("is whole after " .. how .. ", more than a pipe holds", function()
      local lines, done = lines_of([[
        local idle = uv.new_idle()
        idle:start(function()
          for i = 1, 8000 do log.info("line %d %s", i, ("x"):rep(80)) end
          ]] .. ending[1] .. "\nend)\nkorv.run()")
      assert_numbered(8000, lines)
      assert.equal(ending[2], done.code)
    end)
  end

  it("is whole to the last finalizer", function()
    local path = support.write("last.lua", [[
      local log
      KEPT = setmetatable({}, { __gc = function() log.info("line 2") log.info("line 3") end }) -- made first, finalized last
      log = require "korv.log"
      log.info("line 1")]])
    local done = support.run({ "lua5.4", path }, { env = ENV })
    assert.matches('^{"time":"[^"]+","level":"info","message":"line 1"}\n{[^\n]+"line 2"}\n{[^\n]+"line 3"}\n$', done.stderr)
  end)

  it("is text on a terminal", function()
    local path = support.write("terminal.lua", 'require("korv.log").warn("to %s", "people")')
    local done = support.run({ "script", "-qec", "lua5.4 " .. path, "/dev/null" },
      { env = { LUA_PATH = package.path, LUA_CPATH = package.cpath, SHELL = "/bin/sh" } })
    assert.matches("^%S+Z warn to people\r\n$", done.stdout)
  end)

  it("goes to a file whole", function()
    local path = support.path "log"
    local program = support.write("filling.lua", [[
      local log, uv = require "korv.log", require "luv"
      log.format "text"
      local timer = uv.new_timer()
      timer:start(0, 0, function()
        for i = 1, 5000 do log.info("line %d %s", i, ("x"):rep(80)) end
        timer:close()
      end)
      uv.run()]])
    local done = support.run({ "sh", "-c", ("exec lua5.4 %s 2>%s"):format(program, path) },
      { env = ENV })
    assert.equal(0, done.code)
    local lines = {}
    for line in io.lines(path) do lines[#lines + 1] = line end
    assert_numbered(5000, lines)
  end)

  it("of one of two that share a pipe has no line of the other within its own", function()
    local path = support.write("sharing.lua", [[
      local log, uv = require "korv.log", require "luv"
      local timer, n = uv.new_timer(), 0
      timer:start(0, 1, function()
        for _ = 1, 200 do log.info("%s", arg[1]:rep(300)) end
        n = n + 1
        if n == 20 then timer:close() end
      end)
      uv.run()]])
    local write, read = pipe()
    local programs = { support.start({ "lua5.4", path, "a" }, { stderr = write, env = ENV }),
                       support.start({ "lua5.4", path, "b" }, { stderr = write, env = ENV }) }
    uv.fs_close(write)
    local reader = read_all(read)
    pair.wait_for(function() return reader.ended end)
    for _, program in ipairs(programs) do assert.equal(0, program:wait().code) end
    local count = { a = 0, b = 0, dropped = 0 }
    for line in reader.text:gmatch "([^\n]*)\n" do
      local message = cjson.decode(line).message
      local dropped = message:match "^dropped (%d+) lines"
      if dropped then
        count.dropped = count.dropped + dropped
      else
        count[message:sub(1, 1)] = count[message:sub(1, 1)] + 1
        assert.equal(message:sub(1, 1):rep(300), message)
      end
    end
    assert.equal(8000, count.a + count.b + count.dropped)
    assert.is_true(count.a > 0 and count.b > 0)
  end)

  it("ends with the program even where nobody reads it", function()
    local process, read = start [[
      local timer = uv.new_timer()
      timer:start(0, 0, function()
        for i = 1, 20000 do log.info("line %d %s", i, ("x"):rep(80)) end
        timer:close()
      end)
      korv.run()]]
    assert.equal(0, process:wait(5).code)
    uv.fs_close(read)
  end)
end)

-- What a server's process has open that leads where its stderr does, and whether writing there can block.
local function ways_to_stderr(server)
  local folder = "/proc/" .. server.pid .. "/"
  local target, count = uv.fs_readlink(folder .. "fd/2"), 0
  local scan = assert(uv.fs_scandir(folder .. "fd"))
  local name = uv.fs_scandir_next(scan)
  while name do
    if uv.fs_readlink(folder .. "fd/" .. name) == target then count = count + 1 end
    name = uv.fs_scandir_next(scan)
  end
  return count, tonumber(support.read(folder .. "fdinfo/2"):match "flags:%s*(%d+)", 8) & O_NONBLOCK == 0
end

-- Of all that was read: how many lines, how many were dropped as told in between, and whether the numbers show that.
local function account(text)
  local lines, dropped, last = 0, 0, 0
  for line in text:gmatch "([^\n]*)\n" do
    local told = cjson.decode(line)
    local count = told.message:match "^dropped (%d+) lines of the log: they were not read in time$"
    local number = tonumber(told.message:match "^line (%d+) ")
    if count then
      assert.equal("warn", told.level)
      dropped, last = dropped + math.tointeger(count), last + math.tointeger(count)
    elseif number then
      lines = lines + 1
      assert.equal(last + 1, number)
      last = number
    end
  end
  return lines, dropped
end

describe("a server whose stderr is", function()
  setup(pair.begin)
  teardown(pair.finish)

  local without_privileges = uv.getuid() == 0 and { "setpriv", "--bounding-set=-all" } or nil

  for what, case in pairs {
    ["a pipe"] = { ends = pipe, ways = 2 },
    ["a pipe of somebody else's"] = { ends = pipe, ways = 1, mode = 0, before = without_privileges },
    ["a socket"] = { ends = socket, ways = 1 },
  } do
    it(what .. " that nobody reads goes on answering, holds 1 MiB at most, and tells later how many lines it dropped", function()
      local write, read = case.ends()
      if case.mode then assert(uv.fs_fchmod(write, case.mode)) end
      local server = waiting.serve(nil, { script = "spec/data/logging.lua", stderr = write, before = case.before })
      uv.fs_close(write)
      local ways, blocks = ways_to_stderr(server)
      if waiting.is_measured then assert.equal(case.ways, ways) end
      assert.is_true(blocks)

      local client, other = assert(pair.dial(server)), assert(pair.dial(server))
      assert.equal(200, client:get("/hello").code)
      local before, logged = server:rss_bytes(), nil
      other:store("/lines", 40000, function(response, message) logged = response and response.body or message end)
      local calls = 0
      repeat
        assert.equal("hello", client:get("/hello").body)
        calls = calls + 1
      until logged
      assert.equal(40000, logged)
      assert.is_true(calls > 100, calls .. " calls beside it")
      if waiting.is_measured then
        local grown = server:rss_bytes() - before
        assert.is_true(grown < 6 * waiting.MEBIBYTE, ("%.1f MiB"):format(grown / waiting.MEBIBYTE))
      end

      local reader = read_all(read)
      pair.wait_for(function() return reader.text:find "dropped %d+ lines" end)
      assert.equal(40010, client:store("/lines", 10).body)
      pair.wait_for(function() return reader.text:find "line 40010 " end)
      local lines, dropped = account(reader.text)
      assert.equal(40010, lines + dropped)
      assert.is_true(dropped > 20000, dropped .. " dropped")
      assert.is_true(lines > 6000, lines .. " came")
      server.must_end_well = nil
      assert.is_true(server:stop())
      pair.wait_for(function() return reader.ended end)
    end)
  end

  it("a pipe whose reader has gone goes on answering", function()
    local write, read = pipe()
    local server = waiting.serve(nil, { script = "spec/data/logging.lua", stderr = write })
    uv.fs_close(write)
    uv.fs_close(read)
    local client = assert(pair.dial(server))
    assert.equal(20000, client:store("/lines", 20000).body)
    assert.equal("hello", client:get("/hello").body)
  end)
end)
