--- core.start_orphan: a program that is nobody's child here.

local core = require "korv.core"
local support = require "spec.support"
local uv = require "luv"

local PATH = "PATH=" .. os.getenv "PATH"

local function pipe()
  local ends = assert(uv.pipe())
  finally(function() uv.fs_close(ends.read) end)
  return ends
end

-- Until nobody has the other end any more.
local function read_all(fd)
  local text = ""
  repeat
    local part = assert(uv.fs_read(fd, 4096, -1))
    text = text .. part
  until part == ""
  return text
end

-- What a shell script prints to file descriptor 3, and its process.
local function output_of(script, env)
  local ends = pipe()
  local pid = assert(core.start_orphan({ "sh", "-c", script, "sh", "a b" }, env or { PATH }, { ends.write }))
  uv.fs_close(ends.write)
  return read_all(ends.read), pid
end

describe("an orphan", function()
  teardown(support.finish)

  it("is started with its arguments and its environment, and is no child of ours", function()
    local text, pid = output_of('echo "$1 $SAID $HOME" $$ $PPID >&3', { PATH, "SAID=so" })
    local said, own, parent = text:match "^(.-) (%d+) (%d+)\n$"
    assert.same({ "a b so ", pid }, { said, tonumber(own) })
    assert.are_not.equal(uv.os_getpid(), tonumber(parent))
  end)

  it("gets descriptors from 3 on, whatever their numbers are here, and no other ones", function()
    local first, second = pipe(), pipe()
    local low, high = math.min(first.write, second.write), math.max(first.write, second.write)
    local script = "echo 3 >&3; echo 4 >&4; for fd in 5 6 7 8 9; do ! [ -e /proc/$$/fd/$fd ] || echo $fd >&3; done"
    core.close_on_exec(3)
    assert(core.start_orphan({ "sh", "-c", script }, { PATH }, { high, low }))
    uv.fs_close(first.write)
    uv.fs_close(second.write)
    local of_low, of_high = first.read, second.read
    if low == second.write then of_low, of_high = of_high, of_low end
    assert.same({ "3\n", "4\n" }, { read_all(of_high), read_all(of_low) })
  end)

  it("has no signal ignored or blocked", function() -- luv ignores SIGPIPE
    local text = output_of "cat /proc/self/status >&3"
    for _, what in ipairs { "SigBlk", "SigIgn" } do
      local mask = tonumber(text:match(what .. ":%s*(%x+)"), 16)
      assert.equal(0, mask & 0x7FFFFFFF, what) -- libc keeps two of those beyond for itself
    end
  end)

  it("leaves the signals here as they were", function()
    local before = support.read("/proc/self/status"):match "SigBlk:%s*(%x+)"
    output_of "true"
    assert.equal(before, support.read("/proc/self/status"):match "SigBlk:%s*(%x+)")
  end)

  it("cannot be a program that there is not, or have descriptors that are none", function()
    assert.same({ nil, "no such file or directory", "ENOENT" }, { core.start_orphan({ "korv-no-such-command" }, { PATH }, {}) })
    assert.same({ nil, "bad file descriptor", "EBADF" }, { core.start_orphan({ "true" }, { PATH }, { 0, 12345 }) })
  end)

  it("refuses misuse", function()
    assert.has_error(function() core.start_orphan({}, {}, {}) end)
    assert.has_error(function() core.start_orphan({ "true", 1 }, {}, {}) end)
    assert.has_error(function() core.start_orphan({ "true" }, { false }, {}) end)
    assert.has_error(function() core.start_orphan({ "true" }, {}, { "x" }) end)
  end)
end)
