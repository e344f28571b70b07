module understudy.dev/reverseproxy

go 1.20
