--- A million messages that are none, and fifty thousand handshakes that are none, cost a server nothing that lasts: it is up, no larger
-- than before, and whoever else calls it is answered. A twentieth of that without KORV_FULL=1.

local korv = require "korv"
local malformed = require "spec.malformed"
local pair = require "spec.pair"
local serving = require "spec.serving"
local support = require "spec.support"
local uv = require "luv"

local SHARE = os.getenv "KORV_FULL" and 1 or 20
local MESSAGES, HANDSHAKES = 1000000 // SHARE, 50000 // SHARE
local AT_ONCE = 32
local SECONDS = 20 + 600 // SHARE
local MEBIBYTE = 1024 * 1024

local function resident_bytes(pid)
  return 1024 * tonumber(support.read(("/proc/%d/status"):format(pid)):match "VmRSS:%s+(%d+)")
end

local function write_messages(name, count, make)
  local file = assert(io.open(support.path(name), "wb"))
  for _ = 1, count do file:write(make()) end
  file:close()
  return support.path(name)
end

local function recordings()
  local list, folder = {}, support.root .. "/spec/corpus/handshake"
  for name in uv.fs_scandir_next, assert(uv.fs_scandir(folder)) do list[#list + 1] = support.read(folder .. "/" .. name) end
  return list
end

describe("what is malformed", function()
  local server

  before_each(function()
    pair.begin()
    math.randomseed(20261122)
    server = serving.start { script = support.root .. "/spec/data/app.lua", arguments = { "--log-level", "error" } }
  end)
  after_each(serving.finish)

  -- Runs begin(over) while a client of good will calls and calls; over is to be called at the end. Returns how often it was answered.
  local function beside_a_caller(begin)
    local client, ended, answered, last = assert(server:dial()), false, 0, nil
    korv.spawn(function()
      repeat
        local done = ended -- the last call comes behind all else
        local response, message = client:get("/echo", answered)
        assert(response, message)
        assert.same({ 200, answered }, { response.code, response.body })
        answered = answered + 1
      until done
      last = true
    end)
    begin(function() ended = true end)
    serving.await(server, "the end of it, and all other calls answered", function() return last end, SECONDS)
    return answered
  end

  -- What the first part has not made it grow by, the rest must not.
  local function assert_flat(before, limit)
    local grown = resident_bytes(server.pid) - before
    assert.is_true(support.patience > 1 or grown < limit * MEBIBYTE, ("%.1f MiB more"):format(grown / MEBIBYTE))
  end

  local SEND = [[ssh -F none -i "$1" -p "$2" -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile="$3" -s 127.0.0.1 korv <"$4" |
    $5 | grep -a -o '"code":[0-9]*' | sort | uniq -c]]

  -- Sends a file over OpenSSH; over gets how many answers there were of each code, as text.
  local function send(path, unpack, over)
    local process = support.start { "sh", "-c", SEND, "sh", support.key "client", tostring(server.port),
      support.known_hosts(server, "hostile"), path, unpack }
    local timer = uv.new_timer()
    timer:start(10, 10, function()
      if not process:ended() then return end
      timer:close()
      over(process.stdout:gsub("%s+", " ") .. process.stderr)
    end)
  end

  for what, case in pairs {
    ["lines"] = { make = malformed.line, unpack = "cat", count = MESSAGES * 7 // 10 },
    ["gzip members"] = { make = malformed.member, unpack = "gzip -dc", count = MESSAGES * 3 // 10 },
  } do
    it(("%d %s that are no request: each is answered with a 400, and nobody else notices"):format(case.count, what), function()
      local first = case.count // 10
      local paths = { write_messages("first", first, case.make), write_messages("rest", case.count - first, case.make) }
      local codes, before = {}, nil
      local answered = beside_a_caller(function(over)
        send(paths[1], case.unpack, function(said)
          codes[1], before = said, resident_bytes(server.pid)
          send(paths[2], case.unpack, function(more)
            codes[2] = more
            over()
          end)
        end)
      end)
      assert.same({ (' %d "code":400 '):format(first), (' %d "code":400 '):format(case.count - first) }, codes)
      assert_flat(before, 8)
      assert.is_true(answered > 10, answered)
    end)
  end

  -- One after the other in one of AT_ONCE places. The server hangs up, or we do.
  local function one_handshake(bytes, over)
    local socket, timer, closed = uv.new_tcp(), uv.new_timer(), false
    local function close()
      if closed then return end
      closed = true
      timer:close()
      socket:close(over)
    end
    timer:start(100, 0, close)
    socket:connect("127.0.0.1", server.port, function(problem)
      if problem then return close() end
      socket:read_start(function(wrong, data) if wrong or not data then close() end end)
      socket:write(bytes)
    end)
  end

  it(("%d handshakes that are none: nobody else notices, and nothing is left of them"):format(HANDSHAKES), function()
    local recorded, begun, over_count, before = recordings(), 0, 0, nil
    local descriptors
    local answered = beside_a_caller(function(over)
      descriptors = support.descriptors(server.pid)
      local function next_one()
        if begun == HANDSHAKES then return end
        begun = begun + 1
        if begun == HANDSHAKES // 5 then before = resident_bytes(server.pid) end
        one_handshake(malformed.handshake(recorded), function()
          over_count = over_count + 1
          if over_count == HANDSHAKES then over() end
          next_one()
        end)
      end
      for _ = 1, AT_ONCE do next_one() end
    end)
    serving.await(server, "all connections closed", function() return support.descriptors(server.pid) <= descriptors end)
    assert_flat(before, 4)
    assert.is_true(answered > 10, answered)
    assert.equal(200, assert(assert(server:dial()):get("/hello")).code)
  end)
end)
