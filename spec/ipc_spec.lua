--- The pipe between the supervisor and a worker: messages whole whatever the chunks, connections with them, and an end where its rules are
-- broken.

local ipc = require "korv.ipc"
local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local ends -- of the pipe, to be closed

-- A pipe: one end as ipc has it, with what came in; the other bare.
local function pair()
  local fds = assert(uv.socketpair("stream", nil, { nonblock = true }, { nonblock = true }))
  local near, far = uv.new_pipe(true), uv.new_pipe(true)
  assert(near:open(fds[1]))
  assert(far:open(fds[2]))
  local seen = { messages = {}, handles = {}, order = {} }
  local this = ipc(near, {
    on_message = function(message)
      seen.messages[#seen.messages + 1] = message
      seen.order[#seen.order + 1] = "message"
      if message.raise then error "a handler that fails" end
    end,
    on_handle = function(tcp)
      seen.handles[#seen.handles + 1] = tcp
      seen.order[#seen.order + 1] = "handle"
      ends[#ends + 1] = tcp
    end,
    on_end = function(reason, name) seen.ends = (seen.ends or 0) + 1 seen.reason, seen.name = reason, name end,
  })
  ends[#ends + 1], ends[#ends + 2] = near, far
  return this, far, seen
end

local function ended(seen) return support.wait_for(function() return seen.reason ~= nil end) end
local function got(seen, n) return support.wait_for(function() return #seen.messages >= n end) end

describe("ipc", function()
  before_each(function() ends = {} end)
  after_each(function()
    for _, handle in ipairs(ends) do
      if not handle:is_closing() then handle:close() end
    end
    uv.run "nowait"
  end)

  it("delivers a message in whatever pieces it comes, and several of one piece", function()
    local _, far, seen = pair()
    for byte in ('{"n":1}\n'):gmatch "." do
      far:write(byte)
      uv.run "nowait"
    end
    assert.is_true(got(seen, 1))
    far:write '{"n":2}\n{"n":3}\n{"n":'
    assert.is_true(got(seen, 3))
    far:write "4}\n"
    assert.is_true(got(seen, 4))
    for i, message in ipairs(seen.messages) do assert.same({ n = i }, message) end
    assert.is_nil(seen.reason)
  end)

  it("sends a line", function()
    local this, far = pair()
    local text = ""
    far:read_start(function(_, bytes) text = text .. bytes end)
    assert.is_true(this:send { kind = "two\nlines" })
    assert.is_true(support.wait_for(function() return text:find "\n" ~= nil end))
    assert.equal('{"kind":"two\\nlines"}\n', text)
  end)

  it("brings each connection, before its message", function()
    local _, far, seen = pair()
    local sender = ipc(far, { on_message = function() end, on_end = function() end })
    local listening = uv.new_tcp()
    ends[#ends + 1] = listening
    assert(listening:bind("127.0.0.1", 0))
    local accepted, sent = 0, 0
    listening:listen(8, function()
      local tcp = uv.new_tcp()
      listening:accept(tcp)
      accepted = accepted + 1
      sender:send({ n = accepted }, tcp, function(problem)
        assert.is_nil(problem)
        sent = sent + 1
        tcp:close()
      end)
    end)
    local clients, hello = {}, 0
    for i = 1, 5 do
      clients[i] = uv.new_tcp()
      ends[#ends + 1] = clients[i]
      clients[i]:connect("127.0.0.1", listening:getsockname().port, function() clients[i]:read_start(function() hello = hello + 1 end) end)
    end
    assert.is_true(got(seen, 5))
    assert.equal("handle message handle message handle message handle message handle message", table.concat(seen.order, " "))
    assert.is_true(support.wait_for(function() return sent == 5 end))
    for _, tcp in ipairs(seen.handles) do tcp:write "hello" end -- it lives on though the sender has closed its own
    assert.is_true(support.wait_for(function() return hello == 5 end))
  end)

  it("goes on behind a message that made its handler raise", function()
    local logged
    korv.log.sink(function(line) logged = line end)
    finally(function() korv.log.sink(nil) end)
    local _, far, seen = pair()
    far:write '{"raise":true}\n{"n":2}\n'
    assert.is_true(got(seen, 1))
    far:write '{"n":3}\n'
    assert.is_true(got(seen, 3))
    assert.same({ n = 3 }, seen.messages[3])
    assert.matches("a handler that fails", logged)
    assert.is_nil(seen.reason)
  end)

  it("tells that the other end is gone", function()
    local _, far, seen = pair()
    far:write '{"n":1}\n'
    far:close()
    assert.is_true(ended(seen))
    assert.same({ "it ended", "EOF", 1 }, { seen.reason, seen.name, #seen.messages })
  end)

  it("ends at an incomplete line", function()
    local _, far, seen = pair()
    far:write('{"n":1}\n{"n"', function() far:close() end)
    assert.is_true(ended(seen))
    assert.equal("it ended within a message", seen.reason)
    assert.is_nil(seen.name)
  end)

  it("ends at a line that is no message", function()
    for _, line in ipairs { "nonsense", "7", "" } do
      local _, far, seen = pair()
      far:write(line .. '\n{"n":1}\n')
      assert.is_true(ended(seen))
      assert.matches("^it sent what is no message", seen.reason)
      assert.equal(0, #seen.messages)
    end
  end)

  it("takes a line of 1 MiB and ends at a longer one, with or without its end", function()
    local function message(bytes) return '{"t":"' .. ("x"):rep(bytes - 8) .. '"}' end
    local _, far, seen = pair()
    far:write(message(1024 * 1024) .. "\n")
    assert.is_true(got(seen, 1))
    for _, tail in ipairs { "\n", "" } do
      _, far, seen = pair()
      far:write(message(1024 * 1024 + 1) .. tail)
      assert.is_true(ended(seen))
      assert.same({ "it sent a message of more than 1 MiB", 0 }, { seen.reason, #seen.messages })
    end
  end)

  it("ends where 1 MiB waits for a peer that does not read, and says what became of what was sent", function()
    local this, _, seen = pair()
    local text, most, sends = ("x"):rep(10000), 0, 0
    while this:send { t = text } do
      most, sends = math.max(most, this:unsent()), sends + 1
      assert.is_true(sends < 1000)
    end
    assert.equal("it does not read what it is sent", seen.reason)
    assert.is_true(most <= 1024 * 1024 + 10100)
    assert.same({ nil, "the other end is gone", "EPIPE" }, { this:send {} })
    uv.run "nowait"
    assert.equal(1, seen.ends)
  end)

  it("refuses to send what the other end would not take", function()
    local this, _, seen = pair()
    assert.equal("E2BIG", select(3, this:send { t = ("x"):rep(1024 * 1024) }))
    assert.equal("EJSON", select(3, this:send { t = print }))
    assert.is_true(this:send { t = 1 })
    assert.is_nil(seen.reason)
  end)

  it("says nothing of an end that was asked for", function()
    local this, far, seen = pair()
    this:close()
    this:close()
    far:write "nonsense\n"
    for _ = 1, 3 do uv.run "nowait" end
    assert.is_nil(seen.reason)
  end)
end)
