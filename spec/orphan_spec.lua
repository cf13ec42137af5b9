--- core.start_orphan: a program that is nobody's child here.

local core = require "korv.core"
local pair = require "spec.pair"
local support = require "spec.support"
local uv = require "luv"

local PATH = "PATH=" .. os.getenv "PATH"

local function blocked() return support.read("/proc/self/status"):match "SigBlk:%s*(%x+)" end

local BLOCKED = blocked()

local function pipe() return assert(uv.pipe({ nonblock = true }, {})) end

-- Until nobody has the other end any more.
local function read_all(fd)
  local text, is_over, handle = "", false, uv.new_pipe(false)
  handle:open(fd)
  handle:read_start(function(_, part)
    if part then text = text .. part else is_over = true end
  end)
  assert.is_true(support.wait_for(function() return is_over end))
  handle:close()
  return text
end

-- What a program writes to file descriptor 3, and its process.
local function output_of(argv, env)
  local ends = pipe()
  local pid = assert(core.start_orphan(argv, env or { PATH }, { ends.write }))
  uv.fs_close(ends.write)
  return read_all(ends.read), pid
end

describe("an orphan", function()
  teardown(support.finish)

  it("is started with its arguments and its environment, and is no child of ours", function()
    local text, pid = output_of({ "sh", "-c", 'echo "$1 $SAID $HOME" $$ $PPID >&3', "sh", "a b" }, { PATH, "SAID=so" })
    local said, own, parent = text:match "^(.-) (%d+) (%d+)\n$"
    assert.same({ "a b so ", pid }, { said, tonumber(own) })
    assert.are_not.equal(uv.os_getpid(), tonumber(parent))
  end)

  it("gets descriptors from 3 on, and no other ones", function()
    local first, second = pipe(), pipe()
    core.close_on_exec(3)
    local argv = { "sh", "-c", "ls /proc/self/fd >&3; echo 4 >&4" } -- the 5 is ls's own
    assert(core.start_orphan(argv, { PATH }, { first.write, second.write }))
    uv.fs_close(first.write)
    uv.fs_close(second.write)
    assert.same({ "0\n1\n2\n3\n4\n5\n", "4\n" }, { read_all(first.read), read_all(second.read) })
  end)

  -- In a process of its own: this one may have so many open that the number is beyond what can be given.
  it("gets a descriptor whose number another one takes", function()
    local done = pair.program [[
      local core, uv = require "korv.core", require "luv"
      local taker, other, fds = assert(uv.pipe({}, {})), assert(uv.pipe({}, {})), {}
      for i = 1, other.write - 2 do fds[i] = taker.write end
      fds[#fds + 1] = other.write
      local script = ("echo taker >/proc/self/fd/%d; echo other >/proc/self/fd/%d"):format(other.write, other.write + 1)
      assert(core.start_orphan({ "sh", "-c", script }, { "PATH=" .. os.getenv "PATH" }, fds))
      io.write(uv.fs_read(taker.read, 100), uv.fs_read(other.read, 100))]]
    assert.same({ "taker\nother\n", "" }, { done.stdout, done.stderr })
  end)

  it("has no signal ignored or blocked", function() -- luv ignores SIGPIPE, a shell would unblock all
    local text = output_of { "dd", "if=/proc/self/status", "of=/proc/self/fd/3", "status=none" }
    for _, what in ipairs { "SigBlk", "SigIgn" } do
      local mask = tonumber(text:match(what .. ":%s*(%x+)"), 16)
      assert.equal(0, mask & 0x7FFFFFFF, what) -- libc keeps two of those beyond for itself
    end
  end)

  it("leaves signals and descriptors here as they were", function()
    local before = support.descriptors(uv.os_getpid())
    assert(core.start_orphan({ "true" }, { PATH }, { 0, 0 }))
    assert.is_nil((core.start_orphan({ "korv-no-such-command" }, { PATH }, { 0, 0 })))
    assert.equal(before, support.descriptors(uv.os_getpid()))
    assert.equal(BLOCKED, blocked())
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
