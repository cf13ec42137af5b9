--- What counts as a change of a file, and when it is told.

local support = require "spec.support"
local uv = require "luv"
local watch = require "korv.watch"

local told, count, watched, folder

local function shell(command, ...)
  local done = support.run({ "sh", "-ec", command, "sh", ... })
  assert(done.code == 0, done:describe "failed")
end

-- A new folder in which *.lua count as scripts, and one where the file "keys" is of the kind keys.
local function begin(list)
  count = count + 1
  folder = support.path("watched" .. count)
  shell('mkdir -p "$1/keys"', folder)
  told = { scripts = 0, keys = 0 }
  watched = watch.new(function(what) told[what] = told[what] + 1 end)
  watched:set(list or { { folder = folder, what = "scripts" }, { folder = folder .. "/keys", names = { keys = true }, what = "keys" } })
end

local function write(name) support.write(("watched%d/%s"):format(count, name), "return 1\n") end

-- Everything that was done so far has been told: what happens later is told later.
local function flush()
  local before = told.keys
  write "keys/keys"
  assert.is_true(support.wait_for(function() return told.keys > before end))
end

-- Does something that is one change of the scripts, and waits until it was told.
local function is_one_change(doing)
  local before = told.scripts
  doing()
  assert.is_true(support.wait_for(function() return told.scripts > before end), "it was not told")
  flush()
  assert.equal(before + 1, told.scripts)
end

local function is_no_change(doing)
  local before = told.scripts
  doing()
  flush()
  assert.equal(before, told.scripts)
end

-- At least one, as something that takes its time.
local function is_change(doing)
  local before = told.scripts
  doing()
  assert.is_true(support.wait_for(function() return told.scripts > before end), "it was not told")
end

describe("a watch", function()
  setup(function() count = 0 end)
  before_each(function() begin() end)
  after_each(function()
    watched:close()
    uv.run "nowait"
  end)
  teardown(support.finish)

  it("sees a new file, a write, a file renamed into place, one deleted, and a touch", function()
    is_one_change(function() write "a.lua" end)
    is_one_change(function() write "a.lua" end)
    is_one_change(function() shell('echo "return 2" >"$1/.a.swp"; mv "$1/.a.swp" "$1/a.lua"', folder) end)
    is_one_change(function() shell('touch "$1/a.lua"', folder) end)
    is_one_change(function() shell('rm "$1/a.lua"', folder) end)
  end)

  it("sees one change in many writes", function()
    is_one_change(function()
      for i = 1, 50 do write(("f%d.lua"):format(i % 7)) end
    end)
  end)

  it("sees a checkout of a branch", function()
    local git = 'git -C "$1" -c user.name=a -c user.email=a@b.c '
    write "a.lua"
    shell(('git init -q -b one "$1"; %s add a.lua; %s commit -qm 1; %s checkout -qb two; echo "return 2" >"$1/a.lua"; %s commit -qam 2')
      :format(git, git, git, git), folder)
    is_change(function() shell(git .. "checkout -q one", folder) end)
    is_change(function() shell(git .. "checkout -q two", folder) end)
  end)

  it("tells of what changes without a pause, too", function()
    local began, first, writer = uv.hrtime(), nil, uv.new_timer()
    writer:start(0, 10, function()
      write "a.lua"
      if told.scripts > 0 then first = first or uv.hrtime() end
    end)
    support.wait_for(function() return uv.hrtime() - began > 2.5e9 end)
    writer:close()
    assert.is_true(first ~= nil, "nothing was told while it was written")
    assert.is_true(told.scripts <= 10, told.scripts .. " changes in 2.5 s") -- 250 writes; 3 where nothing else delays the loop
  end)

  it("does not mind other files", function()
    is_no_change(function()
      for _, name in ipairs { "a.txt", ".hidden.lua", ".a.lua.swp", "a.lua~", "4913", "keys/a.lua", "lua" } do write(name) end
    end)
  end)

  it("minds only the names that it was given", function()
    watched:set { { folder = folder, names = { ["b.lua"] = true }, what = "scripts" },
      { folder = folder .. "/keys", names = { keys = true }, what = "keys" } }
    is_no_change(function() write "a.lua" end)
    is_one_change(function() write "b.lua" end)
  end)

  it("tells scripts from keys within a folder", function()
    watched:set { { folder = folder, names = { ["b.lua"] = true }, what = "scripts" },
      { folder = folder, names = { own = true }, what = "keys" },
      { folder = folder .. "/keys", names = { keys = true }, what = "keys" } }
    is_no_change(function() write "own" end)
    assert.equal(1, told.keys)
    is_one_change(function() write "b.lua" end)
  end)

  it("forgets what is no more in the list", function()
    watched:set { { folder = folder .. "/keys", names = { keys = true }, what = "keys" } }
    is_no_change(function()
      write "a.lua"
      support.wait_for(function() return told.scripts > 0 end, 1.5) -- past the next look at what is missing
    end)
  end)

  it("is silent once it is closed", function()
    write "a.lua"
    watched:close()
    local closed = watched
    begin()
    flush()
    assert.equal(0, told.scripts)
    closed:close()
  end)
end)

describe("a watched folder", function()
  before_each(function() begin() end)
  after_each(function()
    watched:close()
    uv.run "nowait"
  end)
  teardown(support.finish)
  setup(function() count = 0 end)

  local function sees_changes()
    is_change(function() write "new.lua" end)
    is_change(function() write "new.lua" end)
  end

  it("may be removed and made again", function()
    write "a.lua"
    is_change(function() shell('rm -r "$1"; mkdir -p "$1/keys"; echo "return 1" >"$1/b.lua"', folder) end)
    flush()
    sees_changes()
  end)

  it("is told when it is back, though nothing happens in it any more", function()
    shell('mv "$1" "$1.aside"', folder)
    support.wait_for(function() return uv.fs_stat(folder) end, 1.2) -- past the next look
    local before = told.scripts
    is_change(function() shell('mv "$1.aside" "$1"', folder) end)
    flush()
    assert.equal(before + 1, told.scripts)
    sees_changes()
  end)

  it("may be replaced by another one", function()
    shell('mkdir -p "$1.new/keys"', folder)
    is_change(function() shell('mv "$1" "$1.old"; mv "$1.new" "$1"', folder) end)
    flush()
    sees_changes()
    is_no_change(function() shell('echo "return 1" >"$1.old/a.lua"', folder) end)
  end)

  it("may be missing at first", function()
    local missing = folder .. "/later"
    watched:set { { folder = missing, what = "scripts" }, { folder = folder .. "/keys", names = { keys = true }, what = "keys" } }
    is_no_change(function() write "a.lua" end)
    is_change(function() shell('mkdir "$1"', missing) end)
    is_change(function() write "later/a.lua" end)
  end)

  it("may be behind a symbolic link that changes", function()
    local link = folder .. "/current"
    shell('mkdir "$1/r1" "$1/r2"; ln -s r1 "$1/current"', folder)
    watched:set { { folder = link, what = "scripts" }, { folder = folder .. "/keys", names = { keys = true }, what = "keys" } }
    is_change(function() shell('ln -sfn r2 "$1/current"', folder) end)
    flush()
    is_change(function() write "r2/a.lua" end)
    is_no_change(function() write "r1/a.lua" end)
  end)
end)

describe("a watched file", function()
  setup(function() count = 0 end)
  teardown(support.finish)

  -- A release is a folder, `current` a link to one of them, and what is served a link to a link through that.
  it("may be behind links to files and folders, each of which may change", function()
    begin {}
    shell('mkdir "$1/r1" "$1/r2"; touch "$1/r1/a.lua" "$1/r2/a.lua" "$1/b.lua"; ln -s r1 "$1/current"; ln -s current/a.lua "$1/link.lua"; '
      .. 'mkdir "$1/served"; ln -s "$1/link.lua" "$1/served/app.lua"', folder)
    local list = { { folder = folder .. "/keys", names = { keys = true }, what = "keys" } }
    watch.add_file(list, folder .. "/served/app.lua", "scripts")
    watched:set(list)
    is_change(function() shell('ln -sfn r2 "$1/current"', folder) end)
    flush()
    is_one_change(function() shell('touch "$1/r2/a.lua"', folder) end)
    is_change(function() shell('ln -sfn b.lua "$1/link.lua"', folder) end)
    is_no_change(function() shell('touch "$1/r1/a.lua"', folder) end)
    watched:close()
    uv.run "nowait"
  end)

  it("may be a link that leads in a circle, or nowhere", function()
    begin {}
    shell('ln -s b.lua "$1/a.lua"; ln -s a.lua "$1/b.lua"; ln -s gone/c.lua "$1/c.lua"', folder)
    local list = {}
    watch.add_file(list, folder .. "/a.lua", "scripts")
    assert.equal(41, #list)
    watch.add_file(list, folder .. "/c.lua", "scripts")
    assert.same({ folder .. "/gone", { ["c.lua"] = true } }, { list[43].folder, list[43].names })
    watched:close()
    uv.run "nowait"
  end)
end)

describe("a program that watches", function()
  local PROGRAM = [[
    local uv, watch, log = require "luv", require "korv.watch", require "korv.log"
    local folder, last, full = arg[1], arg[2], arg[3]
    local told = 0
    local w = watch.new(function() told = told + 1 end)
    local taken = {}
    if full then
      local fd = uv.fs_open("/dev/null", "r", 0)
      while fd do
        taken[#taken + 1] = fd
        fd = uv.fs_open("/dev/null", "r", 0)
      end
    end
    w:set { { folder = folder, what = "scripts" }, { folder = folder .. "/keys", what = "scripts" } }
    uv.run()
    for _, fd in ipairs(taken) do uv.fs_close(fd) end
    if full then
      local timer = uv.new_timer()
      timer:start(20, 20, function()
        if told > 0 then timer:close() end
      end)
      uv.run()
    end
    if last == "close" then
      w:close()
      uv.run "nowait"
    end
    print "ended"
  ]]

  setup(function() count = 0 end)
  teardown(support.finish)

  local function run(before, ...)
    begin {}
    watched:close()
    local program = support.write("program.lua", PROGRAM)
    local argv = table.move({ "lua5.4", program, folder, ... }, 1, 3 + select("#", ...), #before + 1, before)
    local done = support.run(argv, { env = { LUA_PATH = package.path, LUA_CPATH = package.cpath } })
    assert.same({ 0, "ended\n" }, { done.code, done.stdout }, done.stderr)
    return done.stderr
  end

  it("ends when nothing else is to be done", function()
    for _, last in ipairs { "close", "leave" } do assert.equal("", run({}, last)) end
  end)

  it("is warned once where the kernel has no more room, and watches once there is", function()
    local stderr = run({ "sh", "-c", 'ulimit -n 40; exec "$@"', "sh" }, "close", "full")
    local warnings = select(2, stderr:gsub("warn", ""))
    assert.matches("changes in .* are not noticed .EMFILE: too many open files.; SIGHUP reloads all the same", stderr)
    assert.equal(1, warnings, stderr)
  end)
end)
